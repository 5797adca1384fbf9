//! The suite of all stores.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_store_postgres::PostgresStore;
use atlas_store_suite::Probe;

use common::Database;

struct Server {
    database: Database,
    store: Arc<PostgresStore>,
}

async fn postgres() -> Server {
    let database = Database::new().await;
    let store = database.store();
    Server { database, store }
}

#[async_trait]
impl Probe for Server {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn another(&self) -> Arc<dyn Store> {
        self.database.store()
    }

    async fn refuse_object(&self, object: &ObjectId) -> bool {
        let client = self.database.client().await;
        let statement = format!(
            "CREATE TABLE IF NOT EXISTS unwanted (id text);
             INSERT INTO unwanted VALUES ('{}');
             CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF EXISTS (SELECT FROM public.unwanted AS u WHERE u.id = new.id) THEN
                     RAISE EXCEPTION 'not wanted: % %', new.id, new.content;
                 END IF;
                 RETURN new;
             END $$;
             CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON compositions
                 FOR EACH ROW EXECUTE FUNCTION refuse()",
            object.as_str().replace('\'', "''")
        );
        client.batch_execute(&statement).await.unwrap();
        true
    }
}

atlas_store_suite::store_suite!(postgres);
