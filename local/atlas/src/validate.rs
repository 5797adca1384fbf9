//! `atlas validate-config`: the offline check.

use atlas_runtime::settings::{Settings, Store};
use atlas_runtime::wiring;
use serde_json::json;

use crate::cli::{Global, ValidateConfig};
use crate::failure::{Exit, Failure};
use crate::{output, session};

/// Also what only shows when the parts are put together: certificates, the connection string.
fn checked(global: &Global) -> Result<Settings, Failure> {
    let settings = session::settings(global, Vec::new())?;
    let parts = wiring::source(&settings).and(wiring::store(&settings));
    match parts {
        Ok(_) => Ok(settings),
        Err(error) => Err(Failure::from(error).masked(&settings.mask)),
    }
}

pub(crate) fn run(global: &Global, arguments: &ValidateConfig) -> Result<Exit, Failure> {
    let path = global.config.display().to_string();
    let settings = match checked(global) {
        Ok(settings) => settings,
        Err(failure) => {
            if arguments.json {
                let mut document = failure.to_json();
                document["valid"] = json!(false);
                output::print_json(&document)?;
            }
            return Err(failure);
        }
    };
    if arguments.json {
        output::print_json(&json!({ "valid": true, "file": path, "notices": settings.notices }))?;
        return Ok(Exit::Complete);
    }
    for notice in &settings.notices {
        output::tell(&format!("note: {notice}"));
    }
    let templates = match settings.query.template_ids.len() {
        0 => "all templates".to_owned(),
        1 => "1 template".to_owned(),
        count => format!("{count} templates"),
    };
    let store = match &settings.store {
        Store::Sqlite { path } => format!("the SQLite file `{}`", path.display()),
        Store::Postgresql(_) => "PostgreSQL".to_owned(),
    };
    let summary = format!(
        "`{path}` is valid: {templates} of {} into {store}, format `{}`",
        settings.openehr.base_url,
        settings.export.format.name()
    );
    output::print(&settings.mask.apply(&summary))?;
    output::tell("next: `atlas doctor` tries it online");
    Ok(Exit::Complete)
}
