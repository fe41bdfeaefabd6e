//! One node without others, and a bare ractor actor on the same runtime.

use std::{ops::Range, path::Path, time::Instant};

use horos_supervision::Context;
use horos_wire::Role;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, rpc::CallResult};

use crate::{
    node::{self, Bench, DEADLINE, Echo, Layout, Node, Panic, Runtimes},
    report::quantile,
};

/// Calls between two looks at the clock, which costs a tenth of one.
const BATCH: usize = 50;

/// The floor: an actor that answers, and nothing around it.
pub(crate) struct Bare;

pub(crate) struct Ask(pub(crate) Echo, pub(crate) RpcReplyPort<Echo>);

impl Actor for Bare {
    type Msg = Ask;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Ask>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Ask>, Ask(echo, reply): Ask, (): &mut ()) -> Result<(), ActorProcessingErr> {
        reply.send(echo)?;
        Ok(())
    }
}

pub(crate) struct Alone {
    runtimes: Runtimes,
    _node: Node,
    context: Context,
    bare: ActorRef<Ask>,
}

impl Alone {
    /// A node with `mortals` services to kill.
    pub(crate) fn start(directory: &Path, mortals: usize) -> anyhow::Result<Self> {
        let runtimes = Runtimes::start(Layout::Default)?;
        let (tls, theirs) = (node::tls(directory, Role::Bo)?, runtimes.clone());
        let node = node::wait(&runtimes.link, async move {
            let node = Node::start(tls, Vec::new(), theirs).await?;
            node.serve("echo").await?;
            for mortal in 0..mortals {
                node.serve(&format!("mortal-{mortal}")).await?;
            }
            anyhow::Ok(node)
        })??;
        let (bare, _) = runtimes.run(Actor::spawn(None, Bare, ()))??;
        Ok(Self { context: node.context(), _node: node, bare, runtimes })
    }

    /// The median of a call through a typed reference and of one to the bare actor with the same timeout, in microseconds.
    pub(crate) fn calls(&self, batches: usize) -> anyhow::Result<(f64, f64)> {
        let (target, bare) = (self.context.at::<Bench>("echo"), self.bare.clone());
        self.runtimes.run(async move {
            let (mut ours, mut floor) = (Vec::with_capacity(batches), Vec::with_capacity(batches));
            for _ in 0..batches {
                let started = Instant::now();
                for _ in 0..BATCH {
                    target.call(Echo { body: vec![7; 64] }, DEADLINE).await?;
                }
                ours.push(started.elapsed().as_nanos() as f64);
                let started = Instant::now();
                for _ in 0..BATCH {
                    let answer = bare.call(|reply| Ask(Echo { body: vec![7; 64] }, reply), Some(DEADLINE)).await?;
                    anyhow::ensure!(matches!(answer, CallResult::Success(_)), "the bare actor did not answer");
                }
                floor.push(started.elapsed().as_nanos() as f64);
            }
            let each = |batches: &[f64]| quantile(batches, 0.5) / BATCH as f64 / 1e3;
            Ok((each(&ours), each(&floor)))
        })?
    }

    /// The median time from a message that makes its actor panic to the next that is answered, in milliseconds.
    ///
    /// Each of `mortals` dies once: a second death soon after would wait on purpose, by its supervisor's backoff.
    pub(crate) fn restarts(&self, mortals: Range<usize>) -> anyhow::Result<f64> {
        let targets: Vec<_> = mortals.map(|mortal| self.context.at::<Bench>(&format!("mortal-{mortal}"))).collect();
        self.runtimes.run(async move {
            let mut millis = Vec::new();
            for target in targets {
                target.call(Echo { body: Vec::new() }, DEADLINE).await?;
                let started = Instant::now();
                anyhow::ensure!(target.call(Panic {}, DEADLINE).await.is_err(), "it did not panic");
                while target.call(Echo { body: Vec::new() }, DEADLINE).await.is_err() {
                    tokio::task::yield_now().await;
                }
                millis.push(started.elapsed().as_secs_f64() * 1e3);
            }
            Ok(quantile(&millis, 0.5))
        })?
    }
}
