use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::Secret;
use azure_core::hmac::hmac_sha256;
use azure_core::http::headers::HeaderName;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Body, Context, Request};
use azure_core::time::{OffsetDateTime, to_rfc7231};

/// Headers whose values are signed without their names, in this order. Behind the third comes the length of the body.
const SIGNED: [&str; 10] = [
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];
const BEFORE_LENGTH: usize = 2;

/// Signs each try of a request with the key of the storage account ("Shared Key" in Azure's words).
#[derive(Debug)]
pub(crate) struct SharedKey {
    account: String,
    key: Secret,
}

impl SharedKey {
    /// `key` is base64, as Azure shows it.
    pub(crate) fn new(account: &str, key: &str) -> Self {
        Self {
            account: account.to_owned(),
            key: Secret::new(key.to_owned()),
        }
    }

    /// What the signature is made of: method, headers and the resource with its parameters, in the order that the service
    /// puts them in too.
    fn text_to_sign(&self, request: &Request) -> String {
        let headers = request.headers();
        let mut text = String::from(request.method().as_str());
        for (index, name) in SIGNED.into_iter().enumerate() {
            let value = headers.get_optional_str(&HeaderName::from_static(name));
            text.push('\n');
            text.push_str(value.unwrap_or_default());
            if index == BEFORE_LENGTH - 1 {
                text.push('\n');
                text.push_str(&body_length(request.body()));
            }
        }
        text.push('\n');

        let mut of_azure: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().trim()))
            .filter(|(name, _)| name.starts_with("x-ms-"))
            .collect();
        of_azure.sort_unstable();
        for (name, value) in of_azure {
            text.push_str(&format!("{name}:{value}\n"));
        }

        let url = request.url();
        text.push_str(&format!("/{}{}", self.account, url.path()));
        let mut parameters: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned()))
            .collect();
        parameters.sort_unstable();
        for (name, value) in parameters {
            text.push_str(&format!("\n{name}:{value}"));
        }
        text
    }
}

/// Nothing stands for zero bytes.
fn body_length(body: &Body) -> String {
    let length = match body {
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::SeekableStream(stream) => stream.len(),
    };
    match length {
        None | Some(0) => String::new(),
        Some(length) => length.to_string(),
    }
}

#[async_trait]
impl Policy for SharedKey {
    async fn send(
        &self,
        context: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        // The date is signed too, and one of a quarter of an hour ago is refused: each try has its own.
        request.insert_header("x-ms-date", to_rfc7231(&OffsetDateTime::now_utc()));
        let signature = hmac_sha256(&self.text_to_sign(request), &self.key)?;
        let authorization = format!("SharedKey {}:{signature}", self.account);
        request.insert_header("authorization", authorization);
        match next.split_first() {
            Some((policy, rest)) => policy.send(context, request, rest).await,
            None => Err(azure_core::Error::with_message(
                azure_core::error::ErrorKind::Other,
                "there is no transport",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use azure_core::http::Method;
    use url::Url;

    use super::*;

    #[test]
    fn what_is_signed_holds_headers_and_parameters_in_the_order_of_the_service() {
        let url = Url::parse("https://a.example/q/messages?Visibilitytimeout=5&messagettl=7");
        let mut request = Request::new(url.unwrap(), Method::Post);
        request.insert_header("content-type", "application/xml");
        request.insert_header("x-ms-version", "2026-04-06");
        request.insert_header("x-ms-date", "Wed, 25 Nov 2026 22:52:00 GMT");
        request.insert_header("accept", "application/xml");
        request.set_body("12345");
        let text = SharedKey::new("acc", "a2V5").text_to_sign(&request);
        let expected = "POST\n\n\n5\n\napplication/xml\n\n\n\n\n\n\n\
            x-ms-date:Wed, 25 Nov 2026 22:52:00 GMT\nx-ms-version:2026-04-06\n\
            /acc/q/messages\nmessagettl:7\nvisibilitytimeout:5";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_key_is_never_shown() {
        let policy = SharedKey::new("acc", "c2VjcmV0");
        assert!(!format!("{policy:?}").contains("c2VjcmV0"));
    }
}
