use std::{
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use horos_store::{
    Kind, StoreError,
    open::{Access, Options},
    readers::{Readers, ReadersActor, ReadersConfig},
    rusqlite::Connection,
    watch::{Detector, WatchConfig, Watcher},
    writer::{WriteError, Writer, WriterActor, WriterConfig},
};
use horos_supervision::{Strategy, Supervisor, SupervisorSpec};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent, call_t};

use crate::support::{LIMIT, SCHEMA, World, labels, soon};

type Failure = StoreError;

/// Keeps the writer's thread in a job until told otherwise, so that what is sent meanwhile becomes one group.
async fn hold(world: &World) -> (mpsc::Sender<()>, tokio::task::JoinHandle<()>) {
    let (release, wait) = mpsc::channel::<()>();
    let (entered, inside) = tokio::sync::oneshot::channel();
    let writer = world.writer.clone();
    let mut entered = Some(entered);
    let task = tokio::spawn(async move {
        let wait = Mutex::new(wait);
        let held = writer.transaction(soon(), move |_| {
            if let Some(entered) = entered.take() {
                entered.send(()).unwrap();
            }
            let _ = wait.lock().unwrap().recv();
            Ok::<_, Failure>(())
        });
        held.await.unwrap();
    });
    inside.await.unwrap();
    (release, task)
}

#[tokio::test]
async fn a_reply_means_committed_and_others_see_it() {
    let world = World::new().await;
    assert_eq!(world.insert("a").await.unwrap(), 1);
    assert_eq!(world.labels(), ["a"]);
    world.stop().await;
}

#[tokio::test]
async fn in_a_group_the_failing_and_the_panicking_are_undone_alone() {
    let world = World::with(|c| c.group_time = LIMIT).await;
    let (release, held) = hold(&world).await;
    let w = world.writer.clone();
    let fails = tokio::spawn(async move {
        w.transaction(soon(), |tx| {
            tx.execute("INSERT INTO item (label) VALUES ('half')", [])?;
            tx.execute("INSERT INTO item (label) VALUES (NULL)", [])?;
            Ok::<_, Failure>(())
        })
        .await
    });
    let w = world.writer.clone();
    let panics = tokio::spawn(async move {
        w.transaction(soon(), |tx| {
            tx.execute("INSERT INTO item (label) VALUES ('boom')", [])?;
            panic!("at the wrong moment");
            #[expect(unreachable_code, reason = "gives the closure its type")]
            Ok::<_, Failure>(())
        })
        .await
    });
    let goods = tokio::spawn(futures(5, world.writer.clone()));
    crate::support::until(|| world.writer.stats().waiting, |n| *n == 7).await;
    drop(release);
    held.await.unwrap();
    assert!(matches!(fails.await.unwrap(), Err(WriteError::Failed(e)) if e.kind == Kind::Constraint));
    assert!(matches!(panics.await.unwrap(), Err(WriteError::Panicked(text)) if text == "at the wrong moment"));
    goods.await.unwrap();
    assert_eq!(world.labels().len(), 5);
    let stats = world.writer.stats();
    assert_eq!((stats.commits, stats.committed_jobs, stats.undone_jobs), (1, 6, 2), "one commit for all");
    world.stop().await;
}

async fn futures(n: usize, writer: Writer) {
    let tasks: Vec<_> = (0..n)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move {
                writer
                    .transaction(soon(), move |tx| {
                        tx.execute("INSERT INTO item (label) VALUES (?1)", [format!("good {n}")])?;
                        Ok::<_, Failure>(())
                    })
                    .await
                    .unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// What loses a whole transaction in SQLite costs only the job that did it.
#[tokio::test]
async fn the_innocent_survive_a_neighbour_that_rolls_everything_back() {
    for (sql, wanted) in [
        ("INSERT OR ROLLBACK INTO item (label) VALUES ('first')", Kind::Constraint),
        // Deferred: noticed at the group's commit only.
        ("INSERT INTO part (item) VALUES (4711)", Kind::Constraint),
    ] {
        let world = World::with(|c| c.group_time = LIMIT).await;
        world.insert("first").await.unwrap();
        let (release, held) = hold(&world).await;
        let goods = tokio::spawn(futures(3, world.writer.clone()));
        crate::support::until(|| world.writer.stats().waiting, |n| *n == 3).await;
        let w = world.writer.clone();
        let bad = tokio::spawn(async move {
            w.transaction(soon(), move |tx| {
                tx.execute(sql, [])?;
                Ok::<_, Failure>(())
            })
            .await
        });
        crate::support::until(|| world.writer.stats().waiting, |n| *n == 4).await;
        drop(release);
        held.await.unwrap();
        goods.await.unwrap();
        let (Err(WriteError::Failed(error) | WriteError::Storage(error)),) = (bad.await.unwrap(),) else { panic!("{sql} succeeded") };
        assert_eq!(error.kind, wanted, "{sql}");
        assert_eq!(world.labels().len(), 4, "{sql}");
        assert_eq!(world.writer.stats().lost_groups, 1);
        world.stop().await;
    }
}

#[tokio::test]
async fn jobs_cannot_touch_the_shared_transaction() {
    let world = World::new().await;
    for sql in
        ["COMMIT", "ROLLBACK", "BEGIN", "RELEASE horos_job", "ATTACH ':memory:' AS x", "PRAGMA synchronous = OFF", "PRAGMA query_only = 1"]
    {
        let outcome = world.writer.transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute_batch(sql)?)).await;
        assert!(matches!(&outcome, Err(WriteError::Failed(e)) if e.kind == Kind::Forbidden), "{sql}: {outcome:?}");
    }
    world
        .writer
        .transaction(soon(), |tx| {
            Ok::<_, Failure>(
                tx.execute_batch("SAVEPOINT mine; INSERT INTO item (label) VALUES ('x'); RELEASE mine; PRAGMA user_version = 3")?,
            )
        })
        .await
        .unwrap();
    assert_eq!(world.labels(), ["x"]);
    world.stop().await;
}

#[tokio::test]
async fn a_full_queue_says_overloaded_and_a_withdrawn_job_has_no_effect() {
    let world = World::with(|c| c.queue_depth = 1).await;
    let (release, held) = hold(&world).await;
    let waiting = world.writer.transaction(Instant::now() + Duration::from_millis(30), |tx| {
        tx.execute("INSERT INTO item (label) VALUES ('late')", [])?;
        Ok::<_, Failure>(())
    });
    let mut waiting = Box::pin(waiting);
    assert!(tokio::time::timeout(Duration::ZERO, &mut waiting).await.is_err());
    assert!(matches!(world.insert("x").await, Err(WriteError::Overloaded)));
    assert!(matches!(waiting.await, Err(WriteError::DeadlinePassed)));
    // The withdrawn job makes room for one that is wanted.
    let w = world.writer.clone();
    let next = tokio::spawn(async move { w.transaction(soon(), |_| Ok::<_, Failure>(())).await });
    crate::support::until(|| next.is_finished() || world.writer.stats().waiting == 1, |sent| *sent).await;
    drop(release);
    held.await.unwrap();
    next.await.unwrap().unwrap();
    world.insert("after").await.unwrap();
    assert_eq!(world.labels(), ["after"]);
    world.stop().await;
}

#[tokio::test]
async fn an_endless_statement_ends_at_its_deadline_without_effect() {
    let world = World::new().await;
    let outcome = world
        .writer
        .transaction(Instant::now() + Duration::from_millis(50), |tx| {
            tx.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO item (label) SELECT 'n' || i FROM n",
                [],
            )?;
            Ok::<_, Failure>(())
        })
        .await;
    assert!(matches!(outcome, Err(WriteError::DeadlinePassed)), "{outcome:?}");
    world.insert("next").await.unwrap();
    assert_eq!(world.labels(), ["next"]);
    world.stop().await;
}

#[tokio::test]
async fn a_foreign_lock_past_the_deadline_has_no_effect() {
    let world = World::new().await;
    let other = Connection::open(&world.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let outcome = world.writer.transaction(Instant::now() + Duration::from_millis(50), |_| Ok::<_, Failure>(())).await;
    assert!(matches!(outcome, Err(WriteError::DeadlinePassed)), "{outcome:?}");
    other.execute_batch("COMMIT").unwrap();
    world.insert("free").await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn commits_are_announced_with_their_tables_and_nothing_else_is() {
    let world = World::new().await;
    let mut commits = world.writer.commits();
    let run = |sql: &'static str| world.writer.transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute_batch(sql)?));
    run("INSERT INTO item (label) VALUES ('a')").await.unwrap();
    run("SELECT 1; DELETE FROM item WHERE id = 99").await.unwrap();
    run("INSERT INTO nowhere VALUES (1)").await.unwrap_err();
    run("INSERT INTO pair VALUES ('k', 'v')").await.unwrap();
    run("CREATE TABLE more (x)").await.unwrap();
    let first = commits.next().await.unwrap().unwrap();
    assert_eq!((first.seq, first.touches("ITEM"), first.touches("part"), first.others), (1, true, false, false));
    let second = commits.next().await.unwrap().unwrap();
    assert_eq!((second.seq, second.others), (2, true), "no hook fires for WITHOUT ROWID tables");
    let third = commits.next().await.unwrap().unwrap();
    assert_eq!((third.seq, third.others), (3, true));
    world.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_typed_and_costs_only_what_does_not_fit() {
    let world = World::with(|c| c.open.max_pages = Some(64)).await;
    let outcome = world
        .writer
        .transaction(soon(), |tx| {
            tx.execute("INSERT INTO item (label) VALUES (hex(zeroblob(1000000)))", [])?;
            Ok::<_, Failure>(())
        })
        .await;
    assert!(matches!(&outcome, Err(WriteError::Failed(e)) if e.kind == Kind::Full), "{outcome:?}");
    world.insert("small").await.unwrap();
    assert_eq!(world.labels(), ["small"]);
    world.stop().await;
}

/// A file system of one megabyte. Only root can have one, so elsewhere the test above has to do.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(directory.path()).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a connection of the test may still be closing.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_disk_that_fills_up_every_answer_is_true_and_space_cures_it() {
    let Some(disk) = SmallDisk::new() else {
        println!("skipped: mounting a file system takes root");
        return;
    };
    let path = disk.0.path().join("a.db");
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 400_000]).unwrap();
    let writer = Writer::new(WriterConfig::new(Options::new(&path, Access::Owner), SCHEMA));
    let (actor, end) = Actor::spawn(None, WriterActor, writer.clone()).await.unwrap();
    let insert = |n: usize| {
        let writer = writer.clone();
        async move {
            let label = format!("{n} {}", "x".repeat(20_000));
            writer.transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES (?1)", [&label])?)).await
        }
    };
    let mut committed = 0;
    let error = loop {
        match insert(committed).await {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
        assert!(committed < 1_000, "the disk never filled");
    };
    let (WriteError::Failed(source) | WriteError::Storage(source)) = &error else { panic!("{error:?}") };
    assert_eq!(source.kind, Kind::Full, "after {committed}");
    assert!(error.had_no_effect());
    assert_eq!(labels(&path).len(), committed);
    std::fs::remove_file(filler).unwrap();
    insert(committed).await.unwrap();
    assert_eq!(labels(&path).len(), committed + 1, "the same writer goes on");
    actor.stop(None);
    end.await.unwrap();
}

#[tokio::test]
async fn the_wal_stays_small_and_is_gone_after_a_stop() {
    let world = World::with(|c| {
        c.checkpoint_frames = 50;
        c.idle_after = Duration::from_millis(20);
    })
    .await;
    for n in 0..300 {
        let label = format!("{n} {}", "x".repeat(3000));
        world.insert(label).await.unwrap();
    }
    let wal = world.path.with_extension("db-wal");
    let size = std::fs::metadata(&wal).unwrap().len();
    assert!(size < 1 << 20, "300 commits of a page or more left a WAL of {size} bytes");
    let path = world.path.clone();
    let _directory = world.stop().await;
    assert!(!wal.exists());
    assert_eq!(labels(&path).len(), 300);
}

/// Restarts its child, as a supervisor does.
struct Parent;

impl Actor for Parent {
    type Msg = ();
    type State = (Writer, u32);
    type Arguments = Writer;
    async fn pre_start(&self, me: ActorRef<()>, writer: Writer) -> Result<Self::State, ActorProcessingErr> {
        Actor::spawn_linked(None, WriterActor, writer.clone(), me.get_cell()).await?;
        Ok((writer, 0))
    }
    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if matches!(event, SupervisionEvent::ActorFailed(..) | SupervisionEvent::ActorTerminated(..)) {
            Actor::spawn_linked(None, WriterActor, state.0.clone(), me.get_cell()).await?;
            state.1 += 1;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_killed_writer_is_replaced_and_the_queue_survives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let writer = Writer::new(WriterConfig::new(Options::new(&path, Access::Owner), SCHEMA));
    // Sent before anybody serves: it waits for the thread.
    let w = writer.clone();
    let early = tokio::spawn(async move {
        w.transaction(soon(), |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES ('early')", [])?)).await
    });
    let (parent, end) = Actor::spawn(None, Parent, writer.clone()).await.unwrap();
    early.await.unwrap().unwrap();
    for round in 0..3 {
        let served = crate::support::until(|| parent.get_children(), |children| children.len() == 1).await;
        served[0].kill();
        let label = format!("round {round}");
        writer
            .transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES (?1)", [&label])?))
            .await
            .unwrap();
        crate::support::until(|| writer.stats().opened, |n| *n == round + 2).await;
    }
    let served = crate::support::until(|| parent.get_children(), |children| children.len() == 1).await;
    let child: ActorRef<horos_store::writer::WriterMsg> = served[0].clone().into();
    let stats = call_t!(child, |reply| horos_store::writer::WriterMsg::Observe { reply }, 5_000).unwrap();
    assert_eq!(stats.opened, 4);
    parent.stop(None);
    end.await.unwrap();
    assert_eq!(labels(&path).len(), 4);
}

#[tokio::test]
async fn after_a_stop_jobs_are_refused_and_what_was_queued_is_committed() {
    let world = World::new().await;
    let (release, held) = hold(&world).await;
    let goods = tokio::spawn(futures(10, world.writer.clone()));
    crate::support::until(|| world.writer.stats().waiting, |n| *n == 10).await;
    world.actor.stop(None);
    drop(release);
    held.await.unwrap();
    goods.await.unwrap();
    let writer = world.writer.clone();
    let path = world.path.clone();
    let _directory = world.stop().await;
    assert!(matches!(writer.transaction(soon(), |_| Ok::<_, Failure>(())).await, Err(WriteError::Stopped)));
    assert_eq!(labels(&path).len(), 10);
}

/// Runs in the child process of the next test; by itself it does nothing.
#[tokio::test]
async fn child_that_commits_until_it_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "how the parent test tells its child what to do")]
    let Ok(path) = std::env::var("HOROS_STORE_TEST_CHILD") else { return };
    let writer = Writer::new(WriterConfig::new(Options::new(path, Access::Owner), SCHEMA));
    let _actor = Actor::spawn(None, WriterActor, writer.clone()).await.unwrap();
    for n in 0_u64.. {
        writer
            .transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES (?1)", [n.to_string()])?))
            .await
            .unwrap();
        println!("committed {n}");
    }
}

#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    use std::io::BufRead;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writing::child_that_commits_until_it_is_killed", "--nocapture"])
        .env("HOROS_STORE_TEST_CHILD", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = None;
    for line in std::io::BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, n)) = line.split_once("committed ") {
            last = Some(n.parse::<usize>().unwrap());
            if last == Some(50) {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    let answered = last.unwrap() + 1;
    let writer = Writer::new(WriterConfig::new(Options::new(&path, Access::Owner), SCHEMA));
    let (actor, end) = Actor::spawn(None, WriterActor, writer.clone()).await.unwrap();
    let kept = labels(&path).len();
    assert!(kept == answered || kept == answered + 1, "answered {answered}, found {kept}");
    actor.stop(None);
    end.await.unwrap();
}

/// Runs in the child process of the next test; by itself it does nothing.
#[test]
fn child_that_writes_beside_the_owner() {
    #[expect(clippy::disallowed_methods, reason = "how the parent test tells its child what to do")]
    let Ok(path) = std::env::var("HOROS_STORE_TEST_GUEST") else { return };
    let guest = horos_store::open::open(&Options::new(path, Access::Guest)).unwrap();
    for n in 0..100 {
        guest.execute("INSERT INTO item (label) VALUES (?1)", [format!("guest {n}")]).unwrap();
    }
}

#[tokio::test]
async fn two_processes_write_one_file_lose_nothing_and_are_both_watched() {
    let world = World::new().await;
    let watcher = Watcher::start(WatchConfig::new(&world.path)).unwrap();
    let rows = watcher.changes(Detector::MaxColumn { table: "item".into(), column: "id".into() });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writing::child_that_writes_beside_the_owner"])
        .env("HOROS_STORE_TEST_GUEST", &world.path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for n in 0..100 {
        world.insert(format!("owner {n}")).await.unwrap();
    }
    assert!(tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
    assert_eq!(world.labels().len(), 200);
    crate::support::until(|| rows.current().token, |max| *max == 200).await;
    world.stop().await;
}

#[tokio::test]
async fn under_a_supervisor_a_killed_writer_serves_again_and_shows_in_the_tree() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path().join("a.db"), Access::Owner);
    let writer = Writer::new(WriterConfig::new(options.clone(), SCHEMA));
    let readers = Readers::new(ReadersConfig::new(options));
    let spec = SupervisorSpec::new("store", Strategy::RestForOne, vec![writer.child("writer"), readers.child("readers")]);
    let supervisor = Supervisor::start(spec, None).await.unwrap();
    let insert = |label: &'static str| {
        let writer = writer.clone();
        async move { writer.transaction(soon(), move |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES (?1)", [label])?)).await }
    };
    insert("before").await.unwrap();
    supervisor.crash_child("writer").await.unwrap();
    crate::support::until(|| writer.stats().opened, |n| *n == 2).await;
    insert("after").await.unwrap();
    let count = readers.read(soon(), |tx| Ok::<i64, Failure>(tx.query_row("SELECT count(*) FROM item", [], |r| r.get(0))?)).await.unwrap();
    assert_eq!(count, 2);
    let tree = supervisor.tree();
    let shown = &tree.children[0];
    assert!(&*shown.name == "writer" && shown.handled == 2 && shown.restarts == 1 && shown.mailbox_limit == 1024, "{shown:?}");
    supervisor.stop().await;
}

#[tokio::test]
async fn memory_serves_tests_without_a_file() {
    let options = Options::memory();
    let writer = Writer::new(WriterConfig::new(options.clone(), SCHEMA));
    let readers = Readers::new(ReadersConfig::new(options));
    let (a, _) = Actor::spawn(None, WriterActor, writer.clone()).await.unwrap();
    let (b, _) = Actor::spawn(None, ReadersActor, readers.clone()).await.unwrap();
    let mut commits = writer.commits();
    writer.transaction(soon(), |tx| Ok::<_, Failure>(tx.execute("INSERT INTO item (label) VALUES ('a')", [])?)).await.unwrap();
    assert!(commits.next().await.unwrap().unwrap().touches("item"));
    let count = readers.read(soon(), |tx| Ok::<i64, Failure>(tx.query_row("SELECT count(*) FROM item", [], |r| r.get(0))?)).await.unwrap();
    assert_eq!(count, 1);
    a.stop(None);
    b.stop(None);
}

#[tokio::test]
async fn a_dropped_future_withdraws_its_job() {
    let world = World::new().await;
    let (release, held) = hold(&world).await;
    let ran = Arc::new(Mutex::new(false));
    let r = Arc::clone(&ran);
    let job = world.writer.transaction(soon(), move |_| {
        *r.lock().unwrap() = true;
        Ok::<_, Failure>(())
    });
    assert!(tokio::time::timeout(Duration::from_millis(1), job).await.is_err());
    drop(release);
    held.await.unwrap();
    world.insert("x").await.unwrap();
    assert!(!*ran.lock().unwrap());
    world.stop().await;
}
