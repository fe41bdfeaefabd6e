//! The program of a user, built as a user builds it: a crate of its own that knows Horos by a path, in
//! no workspace of ours and with none of our environment.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Less than the runner gives a test. Most comes out of the cache of our own build; but where features differ it is
/// compiled anew, for minutes if it is optimised.
const BUILD: Duration = Duration::from_secs(170);
const BUILD_OPTIMISED: Duration = Duration::from_secs(1_000);
/// The program's name, which is not ours.
pub(crate) const NAME: &str = "drill";
/// That of the one whose services are called by their routes.
const ROUTED: &str = "routed";

const SOURCES: [(&str, &str); 2] = [("main.rs", include_str!("../outside/drill.rs")), ("pages.rs", include_str!("../outside/pages.rs"))];

/// Builds the program, once a test process, and gives its path.
///
/// # Panics
/// When it does not build, with everything Cargo said.
pub(crate) async fn drill() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT.get_or_init(|| build(NAME, &SOURCES)).await
}

/// The same for the program whose services are called by their routes.
///
/// # Panics
/// As [`drill`].
pub(crate) async fn routed() -> &'static Path {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT.get_or_init(|| build(ROUTED, &[("main.rs", include_str!("../outside/routed.rs"))])).await
}

async fn build(program: &str, sources: &[(&str, &str)]) -> PathBuf {
    // Cargo gives tests this directory. The same place each time: Cargo tells crates apart by their path.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it stands in the target directory");
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(home.join("src")).expect("the target directory is writable");
    let nodes = ours.join("nodes");
    // `[workspace]` keeps Cargo from looking for one above; the profiles are those of our own builds, so that
    // what both depend on is compiled once.
    let manifest = format!(
        "[package]\nname = \"{program}\"\nversion = \"1.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [[bin]]\nname = \"{program}\"\npath = \"src/main.rs\"\n\n\
         [dependencies]\nhoros-nodes = {{ path = {nodes:?} }}\nschemars = \"1\"\nserde = {{ version = \"1\", features = [\"derive\"] }}\n\
         thiserror = \"2\"\ntokio = {{ version = \"1\", features = [\"rt\", \"time\"] }}\n\n[workspace]\n{}",
        profiles(include_str!("../../Cargo.toml"))
    );
    put(&home.join("Cargo.toml"), manifest.as_bytes());
    for (name, source) in sources {
        put(&home.join("src").join(name), source.as_bytes());
    }
    let lock = home.join("Cargo.lock");
    let locked = ours.join("Cargo.lock");
    // Cargo drops from the copy what this crate does not need, so it is not compared but renewed when ours is newer.
    if modified(&lock) < modified(&locked) {
        put(&lock, &std::fs::read(&locked).expect("our lockfile can be read"));
    }
    #[expect(clippy::disallowed_methods, reason = "Cargo tells its children which Cargo they run under")]
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["HOROS_", "CARGO_", "RUST", "NEXTEST"].iter().any(|prefix| text.starts_with(prefix));
        if ours && !["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"].contains(&&*text) {
            command.env_remove(name);
        }
    }
    let (built, within) = (super::profile(), if super::optimised() { BUILD_OPTIMISED } else { BUILD });
    command.args(["build", "--offline", "--profile", if built == "debug" { "dev" } else { built }, "--target-dir"]).arg(target);
    command.current_dir(&home).stdin(Stdio::null());
    let running = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = timeout(within, running).await.unwrap_or_else(|_| panic!("the outside crate still builds after {within:?}"));
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "the outside crate does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join(built).join(program)
}

/// The tables of `manifest` that say how builds are made.
fn profiles(manifest: &str) -> String {
    let tables = manifest.split("\n[").filter(|table| table.starts_with("profile."));
    tables.map(|table| format!("\n[{}\n", table.trim_end())).collect()
}

/// Writes only what changes, as Cargo judges by the time of writing; whole or not at all, as tests run side by side.
fn put(path: &Path, bytes: &[u8]) {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path)).expect("the target directory is writable");
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|it| it.modified()).ok()
}
