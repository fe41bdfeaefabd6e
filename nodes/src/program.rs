//! A whole program: the command line with a user's services behind it.

use std::{process::ExitCode, sync::Arc, time::Instant};

use horos_wire::{Role, policy::Policy};

use crate::{
    app::Horos,
    cli::{self, App, Cli, Common, Output, RemoteError, Up, Via},
    config::{Config, DataDir},
    exit::Exit,
    node::{self, Finished},
    remote::Operator,
    up,
};

/// Runs the whole command line (`up`, `bo`, `fo`, `call`, `tree`, …) with the services that `register` adds.
///
/// ```no_run
/// # use horos_nodes::Opening;
/// # use horos_nodes::supervision::{Context, Handle, OpenError, Restart, Service};
/// # use horos_nodes::wire::{Never, Role, protocol};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Debug, Serialize, Deserialize, JsonSchema)] pub struct Hello { name: String }
/// # protocol! { pub Greeting = "greeting" v1 { 1 hello: Hello => String; } }
/// # struct Greeter;
/// # impl Service for Greeter { type Protocol = Greeting; }
/// # impl Handle<Hello> for Greeter {
/// #     async fn handle(&mut self, hello: Hello, _: &Context) -> Result<String, Never> { Ok(hello.name) }
/// # }
/// # impl Greeter { async fn open(_: Opening) -> Result<Self, OpenError> { Ok(Self) } }
/// fn main() -> std::process::ExitCode {
///     horos_nodes::main(|n| {
///         n.on(Role::Bo).service("greeter", Restart::Permanent, Greeter::open).to(&[Role::Fo, Role::Operator]);
///     })
/// }
/// ```
pub fn main(register: impl FnOnce(&mut Horos)) -> ExitCode {
    run(std::env::args_os(), register)
}

/// The same for a program that is one command: `horos-bo` is `horos bo`.
pub fn main_as(command: &str, register: impl FnOnce(&mut Horos)) -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    arguments.insert(1.min(arguments.len()), command.into());
    run(arguments, register)
}

fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>, register: impl FnOnce(&mut Horos)) -> ExitCode {
    // First of all: a library that looked for a provider before this would fix its absence for good.
    horos_link::tls::install_default_provider();
    let arguments: Vec<_> = arguments.into_iter().collect();
    let (cli, bin) = match Cli::parse_as(arguments.iter().cloned()) {
        Ok(parsed) => parsed,
        Err(error) => return cli::misused(&arguments, &error).into(),
    };
    #[expect(clippy::disallowed_methods, reason = "set by `up` for its own children; no configuration")]
    let playground = std::env::var(up::PLAYGROUND).ok();
    up::end_with_parent(playground.as_deref());
    let playground = playground.is_some() || matches!(cli.command, cli::Command::Up(_));
    let mut horos = Horos::new(playground);
    register(&mut horos);
    let output = Output::new(&bin, cli.common.json, cli.common.color);
    if !horos.problems().is_empty() {
        return output.fail_text(Exit::Usage, &format!("the program's services: {}", horos.problems().join("; ")), None).into();
    }
    cli::run(cli, &bin, &Program { horos: Arc::new(horos) })
}

struct Program {
    horos: Arc<Horos>,
}

impl App for Program {
    type Remote = Operator;

    async fn connect(&self, via: &Via, until: Instant) -> Result<Operator, RemoteError> {
        Operator::connect(via, self.policy(), until).await
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs only file descriptors");
        runtime.block_on(future)
    }

    fn node(&self, config: Config, data: DataDir, output: &Output) -> Exit {
        let ready = |id: &horos_wire::NodeId, address: std::net::SocketAddr| {
            let told = serde_json::json!({ "event": "ready", "node": id.to_uri(), "address": address });
            // A node goes on where nobody reads what it says.
            let _ = output.data(&told, |_| format!("{} ready on {address}\n", id.name));
        };
        match node::run(config, data, self.horos.clone(), ready) {
            Ok(Finished::Stopped) => Exit::Ok,
            Ok(Finished::AtOnce) => Exit::Interrupted,
            Ok(Finished::Broken(cause)) => output.fail_text(Exit::Broken, &format!("gave up: {cause}"), Some("the log says what failed")),
            Err(error) => output.fail(Exit::Local, &error, Some("`{bin} doctor` checks this machine")),
        }
    }

    fn up(&self, up: &Up, common: &Common, output: &Output) -> Exit {
        let served = |role| self.horos.http_example(role).map(|(path, scope)| (role, path.to_owned(), scope.map(ToString::to_string)));
        let examples = up::Examples {
            command: self.horos.example().unwrap_or_else(|| "tree".to_owned()),
            http: served(Role::Fo).or_else(|| served(Role::Bo)),
        };
        self.block_on(up::run(up, common, output, self.policy(), &examples))
    }

    fn policy(&self) -> Policy {
        self.horos.policy().clone()
    }
}
