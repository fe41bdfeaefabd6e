use std::time::{Duration, Instant};

use horos_store::{Kind, StoreError, readers::ReadError};

use crate::support::{World, soon};

#[tokio::test]
async fn reads_run_beside_the_writer_and_cannot_write() {
    let world = World::new().await;
    let (readers, actor) = world.readers().await;
    world.insert("a").await.unwrap();
    let count =
        |tx: &horos_store::rusqlite::Connection| Ok::<i64, StoreError>(tx.query_row("SELECT count(*) FROM item", [], |r| r.get(0))?);
    assert_eq!(readers.read(soon(), count).await.unwrap(), 1);
    let write = readers.read(soon(), |tx| Ok::<_, StoreError>(tx.execute("DELETE FROM item", [])?)).await;
    assert!(matches!(&write, Err(ReadError::Failed(e)) if e.kind == Kind::ReadOnly), "{write:?}");
    let sly = readers.read(soon(), |tx| Ok::<_, StoreError>(tx.execute_batch("PRAGMA query_only = 0; DELETE FROM item")?)).await;
    assert!(sly.is_err());
    assert_eq!(readers.read(soon(), count).await.unwrap(), 1);
    let panics = readers.read(soon(), |_| -> Result<(), StoreError> { panic!("oops") }).await;
    assert!(matches!(panics, Err(ReadError::Panicked(text)) if text == "oops"));
    assert_eq!(readers.read(soon(), count).await.unwrap(), 1);
    actor.stop(None);
    world.stop().await;
    crate::support::until(|| actor.get_status(), |s| *s == ractor::ActorStatus::Stopped).await;
    assert!(matches!(readers.read(soon(), count).await, Err(ReadError::Stopped)));
}

#[tokio::test]
async fn an_endless_read_ends_at_its_deadline_and_frees_its_thread() {
    let world = World::new().await;
    let (readers, _actor) = world.readers().await;
    for _ in 0..4 {
        let endless = readers
            .read(Instant::now() + Duration::from_millis(20), |tx| {
                let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
                Ok::<i64, StoreError>(tx.query_row(sql, [], |r| r.get(0))?)
            })
            .await;
        assert!(matches!(endless, Err(ReadError::DeadlinePassed)), "{endless:?}");
    }
    readers.read(soon(), |_| Ok::<_, StoreError>(())).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_file_that_takes_the_path_is_read_at_once() {
    let world = World::new().await;
    let (readers, _actor) = world.readers().await;
    world.insert("old").await.unwrap();
    let first =
        |tx: &horos_store::rusqlite::Connection| Ok::<String, StoreError>(tx.query_row("SELECT label FROM item", [], |r| r.get(0))?);
    assert_eq!(readers.read(soon(), first).await.unwrap(), "old");
    let path = world.path.clone();
    let other = World::new().await;
    other.insert("new").await.unwrap();
    let replacement = other.path.clone();
    let _kept = other.stop().await;
    let _directory = world.stop().await;
    std::fs::rename(replacement, path).unwrap();
    assert_eq!(readers.read(soon(), first).await.unwrap(), "new");
}
