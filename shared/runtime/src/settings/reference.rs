//! References to secrets in vaults: `keyvault:` and `secretsmanager:`.

use url::Url;

/// A secret in a vault of a cloud, as a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    /// Azure Key Vault.
    KeyVault {
        /// Address of the vault.
        vault: Url,
        name: String,
        /// The newest one if absent.
        version: Option<String>,
    },
    /// AWS Secrets Manager.
    SecretsManager {
        /// Name or ARN.
        id: String,
        /// A member of a secret that is a JSON object.
        member: Option<String>,
    },
}

impl Reference {
    /// Reads what follows the scheme.
    pub(super) fn parse(scheme: &str, target: &str) -> Option<Self> {
        match scheme {
            "keyvault" => key_vault(target),
            "secretsmanager" => secrets_manager(target),
            _ => None,
        }
    }

    pub(super) fn example(scheme: &str) -> &'static str {
        match scheme {
            "keyvault" => "keyvault:https://VAULT.vault.azure.net/secrets/NAME",
            _ => "secretsmanager:NAME",
        }
    }
}

fn key_vault(target: &str) -> Option<Reference> {
    let mut url = Url::parse(target).ok()?;
    let is_plain = url.scheme() == "https"
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let segments: Vec<&str> = url.path_segments()?.collect();
    let (name, version) = match segments.as_slice() {
        ["secrets", name] => (*name, None),
        ["secrets", name, version] => (*name, Some(*version)),
        _ => return None,
    };
    // They become parts of another address.
    let is_word = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if !is_plain || !is_word(name) || !version.is_none_or(is_word) {
        return None;
    }
    let (name, version) = (name.to_owned(), version.map(str::to_owned));
    url.set_path("");
    Some(Reference::KeyVault {
        vault: url,
        name,
        version,
    })
}

fn secrets_manager(target: &str) -> Option<Reference> {
    let (id, member) = match target.split_once('#') {
        Some((id, member)) => (id, Some(member)),
        None => (target, None),
    };
    let is_id = |c: char| c.is_ascii_alphanumeric() || "/_+=.@-:".contains(c);
    let is_right = !id.is_empty() && id.chars().all(is_id) && member != Some("");
    is_right.then(|| Reference::SecretsManager {
        id: id.to_owned(),
        member: member.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use super::*;

    #[test]
    fn a_secret_of_key_vault_is_named_with_or_without_its_version() {
        let of = |text: &str| Reference::parse("keyvault", text).unwrap();
        let expected = |version: Option<&str>| Reference::KeyVault {
            vault: Url::parse("https://v.vault.azure.net").unwrap(),
            name: "a-Secret-1".to_owned(),
            version: version.map(str::to_owned),
        };
        let address = "https://v.vault.azure.net/secrets/a-Secret-1";
        assert_eq!(of(address), expected(None));
        assert_eq!(of(&format!("{address}/0f3c")), expected(Some("0f3c")));
    }

    #[test]
    fn a_secret_of_secrets_manager_is_named_with_or_without_a_member() {
        let of = |text: &str| match Reference::parse("secretsmanager", text).unwrap() {
            Reference::SecretsManager { id, member } => (id, member),
            reference @ Reference::KeyVault { .. } => unreachable!("{reference:?}"),
        };
        assert_eq!(of("atlas/cdr"), ("atlas/cdr".to_owned(), None));
        let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:cdr-AbCdEf";
        let member = Some("pass word".to_owned());
        assert_eq!(of(&format!("{arn}#pass word")), (arn.to_owned(), member));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for (scheme, text) in [
            ("keyvault", ""),
            ("keyvault", "name"),
            ("keyvault", "http://v.vault.azure.net/secrets/name"),
            ("keyvault", "https://v.vault.azure.net/keys/name"),
            ("keyvault", "https://v.vault.azure.net/secrets/"),
            ("keyvault", "https://v.vault.azure.net/secrets/name/"),
            ("keyvault", "https://v.vault.azure.net/secrets/na%2Fme"),
            ("keyvault", "https://v.vault.azure.net/secrets/name/1/2"),
            ("keyvault", "https://v.vault.azure.net/secrets/name?x=1"),
            ("keyvault", "https://u:p@v.vault.azure.net/secrets/name"),
            ("secretsmanager", ""),
            ("secretsmanager", "#member"),
            ("secretsmanager", "name#"),
            ("secretsmanager", "a name"),
        ] {
            assert_eq!(Reference::parse(scheme, text), None, "{scheme}:{text}");
        }
    }
}
