//! What most commands begin with: settings from the file, the environment and the flags, and log lines.

use std::path::Path;

use atlas_runtime::settings::{Override, Settings};
use atlas_runtime::{Environment, telemetry};

use crate::cli::Global;
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;

/// Settings, checked; log lines go to `progress` from here on.
pub(crate) fn begin(
    global: &Global,
    flags: Vec<Override>,
    progress: &Progress,
) -> Result<Settings, Failure> {
    let settings = settings(global, flags)?;
    telemetry::init(
        settings.log_level,
        settings.log_file.as_ref(),
        progress.clone(),
    )?;
    for notice in &settings.notices {
        output::tell(&format!("note: {notice}"));
    }
    Ok(settings)
}

/// Settings, checked, and nothing else.
pub(crate) fn settings(global: &Global, flags: Vec<Override>) -> Result<Settings, Failure> {
    let folder = global.config.parent().unwrap_or(Path::new(""));
    let environment = Environment::of_process().with_dotenv(folder)?;
    let overrides = [global.overrides(), flags].concat();
    Ok(Settings::load(&global.config, &environment, &overrides)?)
}
