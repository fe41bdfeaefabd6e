//! How a command ends, as one number a script can act on.

use std::process::ExitCode;

use horos_wire::{CallError, NoEffect};

/// The exit codes, the same for every command. The first question after a failure is whether to try again, so that is
/// how they are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The callee answered with its own error; `doctor`: something is wrong.
    Failed = 1,
    /// The command line or the configuration is wrong. Nothing was done.
    Usage = 2,
    /// Refused: nothing was done, trying again is safe. `status`: the node takes no work now.
    NoEffect = 3,
    /// It may or may not have been done: try again only what is idempotent.
    Unknown = 4,
    /// No node could be reached, or none that believes this certificate. Nothing was done.
    Unreachable = 5,
    /// A file or directory here could not be read or written.
    Local = 6,
    /// A node ended because something in it was broken beyond its supervisors' power.
    Broken = 70,
    /// Stopped by Ctrl-C (128 + SIGINT, as shells report it).
    Interrupted = 130,
}

impl Exit {
    /// The table as `--help` shows it.
    pub const HELP: &str = "\
Exit codes:
  0    done
  1    the callee's own error; doctor: something is wrong
  2    wrong command line or configuration; nothing was done
  3    refused; nothing was done, trying again is safe. status: not ready
  4    outcome unknown; try again only what is idempotent
  5    no node could be reached; nothing was done
  6    a local file could not be read or written
  70   a node gave up after repeated failures
  130  interrupted";

    /// What a call's end means for the shell.
    pub fn of<E>(error: &CallError<E>) -> Self {
        match error {
            CallError::Failed(_) => Self::Failed,
            CallError::NoEffect(NoEffect::NoRoute(_)) => Self::Unreachable,
            CallError::NoEffect(NoEffect::InvalidAddress(_)) => Self::Usage,
            CallError::NoEffect(_) => Self::NoEffect,
            CallError::Unknown(_) => Self::Unknown,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_wire::Unknown;

    #[test]
    fn a_script_can_tell_what_is_safe_to_try_again() {
        assert_eq!(Exit::of(&CallError::<()>::NoEffect(NoEffect::Expired)), Exit::NoEffect);
        assert_eq!(Exit::of(&CallError::<()>::NoEffect(NoEffect::NoRoute("fo-1".into()))), Exit::Unreachable);
        assert_eq!(Exit::of(&CallError::<()>::Unknown(Unknown::DeadlinePassed)), Exit::Unknown);
        assert_eq!(Exit::of(&CallError::Failed(())), Exit::Failed);
    }

    #[test]
    fn every_code_is_in_the_help() {
        for code in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::NoEffect,
            Exit::Unknown,
            Exit::Unreachable,
            Exit::Local,
            Exit::Broken,
            Exit::Interrupted,
        ] {
            assert!(Exit::HELP.lines().any(|line| line.split_whitespace().next() == Some(&(code as u8).to_string())), "{code:?}");
        }
    }
}
