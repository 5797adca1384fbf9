//! The planner on AWS Lambda. EventBridge Scheduler sends what its Terraform says, with the occurrence in `scheduled`.

use atlas_lambda::{Error, Event, serve};
use atlas_openehr::time::Instant;
use atlas_runtime::function::Lazy;
use atlas_runtime::wiring::machine_time;
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let suite = &Lazy::default();
    serve(async |event: Event| {
        let suite = suite.get().await?;
        let occurrence = occurrence(&event.payload).unwrap_or_else(machine_time);
        let tick =
            atlas_planner::handle(suite, occurrence, &suite.planning_budget(event.left)).await?;
        Ok(json!(tick))
    })
    .await
}

/// `None` when a person invokes the function by hand.
fn occurrence(payload: &Value) -> Option<Instant> {
    Instant::parse(payload.get("scheduled")?.as_str()?).ok()
}
