//! Function: planner. Its timer fires, and what is new since the watermarks becomes slices and messages.

use atlas_engine::Result;
use atlas_engine::suite::planner::PlannerTick;
use atlas_engine::work::Budget;
use atlas_openehr::time::Instant;
use atlas_runtime::function::Suite;

/// Plans the occurrence of the schedule. The same occurrence again goes on with the same run.
///
/// # Errors
/// Whatever source, store and queue could not do; the platform fires the timer again, and the next tick repairs the rest.
pub async fn handle(suite: &Suite, occurrence: Instant, budget: &Budget) -> Result<PlannerTick> {
    let tick = suite
        .engine
        .plan_and_repair(occurrence, &suite.request, budget)
        .await?;
    match tick.unplanned {
        None => tracing::info!(
            run_id = tick.run,
            sent = tick.sent,
            revived = tick.revived,
            "planned: {} messages sent, {} slices and runs tried again",
            tick.sent,
            tick.revived,
        ),
        Some(why) => tracing::warn!(
            run_id = tick.run,
            sent = tick.sent,
            revived = tick.revived,
            "nothing was planned, because {}: {} messages sent, {} slices and runs tried again",
            why.explanation(),
            tick.sent,
            tick.revived,
        ),
    }
    Ok(tick)
}
