//! The watermark on AWS Lambda: requests to its Function URL are answered; anything else is its timer.

use std::sync::Arc;

use atlas_lambda::{Error, Event, answer, is_request, serve};
use atlas_runtime::function::Lazy;
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let suite = &Arc::new(Lazy::default());
    serve(async |event: Event| {
        if is_request(&event.payload) {
            return answer(atlas_watermark::router(Arc::clone(suite)), event.payload).await;
        }
        Ok(json!(
            atlas_watermark::save_report(suite.get().await?).await?
        ))
    })
    .await
}
