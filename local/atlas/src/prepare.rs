//! `atlas prepare`: makes the tables, so that nobody else needs the right to.

use atlas_runtime::settings::Store;
use atlas_runtime::wiring;
use serde_json::json;

use crate::cli::{Global, Prepare};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, session};

pub(crate) async fn run(global: &Global, arguments: &Prepare) -> Result<Exit, Failure> {
    let settings = session::begin(global, Vec::new(), &Progress::new())?;
    let store = wiring::store(&settings)?;
    store.prepare().await?;
    let kind = store.kind();
    if arguments.json {
        output::print_json(&json!({ "store": kind, "prepared": true }))?;
    } else {
        output::print(&format!("{kind}: the tables are ready"))?;
        output::tell(match &settings.store {
            Store::Sqlite { .. } => "next: atlas export",
            Store::Postgresql(_) => {
                "next: atlas grants --role ROLE, for the role that exports; then atlas export as that role"
            }
        });
    }
    Ok(Exit::Complete)
}
