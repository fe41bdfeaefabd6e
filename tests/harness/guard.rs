//! Kills what a test started when the test itself is killed.
//!
//! `Drop` covers a test that ends or panics; a runner that gives up on a test sends SIGKILL, and
//! then nothing of ours runs. So one shell a test process, in a group of its own, is told the process
//! groups to kill and reads until its standard input ends, which the kernel sees to however this
//! process dies. (`PR_SET_PDEATHSIG` would need `unsafe`, is bound to the spawning *thread*, and
//! does not reach a node's own children.)

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use parking_lot::Mutex;

const SCRIPT: &str = r#"
groups=" "
while read -r verb group; do
  case $verb in
    add) groups="$groups$group " ;;
    del) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"#;

static GUARD: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    Mutex::new(shell.spawn().expect("/bin/sh runs"))
});

/// Has `group` killed should this process die without [`release`].
pub(super) fn watch(group: i32) {
    tell("add", group);
}

/// Forgets `group`: it is dead, and its number may be somebody else's soon.
pub(super) fn release(group: i32) {
    tell("del", group);
}

fn tell(verb: &str, group: i32) {
    if let Some(guard) = &mut GUARD.lock().stdin {
        // Failing means the shell was killed by hand: the tests still clean up through `Drop`.
        let _ = writeln!(guard, "{verb} {group}");
    }
}
