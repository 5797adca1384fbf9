//! The on-demand API on AWS Lambda, behind a Function URL.

use std::sync::Arc;

use atlas_lambda::{Error, Event, answer, serve};
use atlas_runtime::function::Lazy;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let suite = &Arc::new(Lazy::default());
    serve(async |event: Event| answer(atlas_export::router(Arc::clone(suite)), event.payload).await)
        .await
}
