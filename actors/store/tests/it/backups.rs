use std::fs;

use horos_store::{
    backup::{BackupError, BackupOptions, backup, restore},
    open::{Access, Options, open},
    rusqlite::Connection,
};

use crate::support::{World, labels};

#[tokio::test]
async fn a_backup_under_writes_is_one_commit_whole_and_never_overwrites() {
    let world = World::new().await;
    let target = world.directory.path().join("copy.db");
    for n in 0..200 {
        world.insert(format!("{n} {}", "x".repeat(2000))).await.unwrap();
    }
    let (path, copy) = (world.path.clone(), target.clone());
    let running = tokio::task::spawn_blocking(move || {
        let rest = std::time::Duration::from_millis(1);
        backup(&path, &copy, BackupOptions { rest, ..BackupOptions::default() })
    });
    let mut n = 200;
    while !running.is_finished() {
        world.insert(format!("{n}")).await.unwrap();
        n += 1;
    }
    let report = running.await.unwrap().unwrap();
    assert!(report.bytes > 400_000 && report.pages > 100, "{report:?}");
    let copied = labels(&target);
    assert!(copied.len() >= 200 && copied.len() <= n);
    assert!(copied.iter().enumerate().all(|(i, l)| l.split(' ').next() == Some(&i.to_string())), "a prefix of the commits");
    let before = fs::read(&target).unwrap();
    assert!(matches!(backup(&world.path, &target, BackupOptions::default()), Err(BackupError::Exists { .. })));
    assert_eq!(fs::read(&target).unwrap(), before);
    let strays: Vec<_> = fs::read_dir(world.directory.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| n.to_string_lossy().contains(".tmp"))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_restore_is_refused_while_the_target_is_in_use_by_anybody() {
    let world = World::new().await;
    world.insert("kept").await.unwrap();
    let copy = world.directory.path().join("copy.db");
    backup(&world.path, &copy, BackupOptions::default()).unwrap();
    world.insert("later").await.unwrap();
    assert!(matches!(restore(&copy, &world.path), Err(BackupError::InUse { .. })));
    let path = world.path.clone();
    let _directory = world.stop().await;
    // Somebody who knows nothing of our lock.
    let stranger = Connection::open(&path).unwrap();
    stranger.query_row("SELECT count(*) FROM item", [], |_| Ok(())).unwrap();
    assert!(matches!(restore(&copy, &path), Err(BackupError::InUse { .. })));
    assert_eq!(labels(&path), ["kept", "later"]);
    drop(stranger);
    restore(&copy, &path).unwrap();
    assert_eq!(labels(&path), ["kept"]);
    open(&Options::new(&path, Access::Owner)).unwrap();
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_a_damaged_target_is_replaced() {
    let world = World::new().await;
    world.insert("kept").await.unwrap();
    let copy = world.directory.path().join("copy.db");
    backup(&world.path, &copy, BackupOptions::default()).unwrap();
    let path = world.path.clone();
    let directory = world.stop().await;
    let bad = directory.path().join("bad.db");
    fs::write(&bad, "nothing of the kind".repeat(1000)).unwrap();
    assert!(matches!(restore(&bad, &path), Err(BackupError::Source(_))));
    assert_eq!(labels(&path), ["kept"]);
    restore(&copy, &bad).unwrap();
    assert_eq!(labels(&bad), ["kept"]);
    let absent = directory.path().join("absent.db");
    restore(&copy, &absent).unwrap();
    assert_eq!(labels(&absent), ["kept"]);
}
