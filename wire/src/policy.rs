//! Who may call what, and who may offer what: one table, deny by default.
//!
//! A pure value. Every node builds the same one at start ([`Policy::builtin`], then a rule for each of the
//! operator's own services) and asks it when a link binds a name; the answer, a [`MethodSet`], is what
//! is checked for each message. `horos policy show` prints [`Policy::rows`].
//!
//! Roles come from the certificate of the link, never from what a message says. Protocols named `horos.…`
//! are Horos's own: their rules stand here alone, so no configuration can give an FO `crash`.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Protocol, Request, Role,
    protocol::{
        Method,
        bytes::ByteService,
        control::{Control, GetRoute, History, ListForced, ListRoutes},
        keys::{Changes, Keys, List, Report},
        node::{Actors, ControlOwner, Describe, Node, Recorder, Serving, Status, Tree},
        registry::{GetTool, ListRules, ListTools, Registry, RuleHistory, ToolHistory},
        routed::RoutedCalls,
        router::{GetService, ListBreakers, ListServices, Router},
        sync::{self, Replica, Sync},
        tools::{AuditAsk, CallTool, ListServed, PassOn, Tools, ToolsStatusAsk},
    },
};

/// Most rules and most offers beyond the built-in ones: four roles on two for 500 protocols.
pub const MAX_RULES: usize = 4096;

/// Protocols whose rules are Horos's own.
pub const RESERVED: &str = "horos.";

/// Methods that a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowed {
    /// Every one, those of later releases included.
    All,
    /// Those of these numbers.
    List(Box<[u16]>),
}

impl Allowed {
    fn contains(&self, method: u16) -> bool {
        match self {
            Self::All => true,
            Self::List(numbers) => numbers.contains(&method),
        }
    }
}

/// Lets callers of one role call a protocol on nodes of another. There is no rule that forbids: what no rule
/// allows is forbidden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the caller's certificate says.
    pub caller: Role,
    /// What the callee's says.
    pub callee: Role,
    /// The protocol's name.
    pub protocol: Box<str>,
    /// Which of its methods.
    pub methods: Allowed,
}

/// Why a rule was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The protocol is Horos's own.
    #[error("the rules for {0:?} are built in; name your protocol without \"horos.\"")]
    Reserved(Box<str>),
    /// Operators and viewers run no actors: nothing can be called on them and they offer nothing.
    #[error("a {0} runs no actors: only bo and fo can be called or offer a protocol")]
    NoNode(Role),
    /// More than [`MAX_RULES`].
    #[error("more than {MAX_RULES} rules")]
    TooMany,
}

/// The table.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    offers: Vec<(Role, Box<str>)>,
    known: Vec<(Box<str>, &'static [Method])>,
}

impl Policy {
    /// What holds on every cluster: the rules for Horos's own protocols, and nothing else.
    pub fn builtin() -> Self {
        const LOOK: &[u16] = &[Tree::METHOD, Actors::METHOD, Status::METHOD, Describe::METHOD];
        const VIEW: &[u16] =
            &[Tree::METHOD, Actors::METHOD, Status::METHOD, Describe::METHOD, Recorder::METHOD, Serving::METHOD, ControlOwner::METHOD];
        let mut policy = Self { rules: Vec::new(), offers: Vec::new(), known: Vec::new() };
        policy.declare::<Node>();
        for callee in Role::ALL.into_iter().filter(|role| role.is_node()) {
            for caller in Role::ALL {
                let methods = match caller {
                    // The flight recorder shows who calls whom, so a node, which may be a compromised FO, has it not.
                    Role::Bo | Role::Fo => Allowed::List(LOOK.into()),
                    Role::Viewer => Allowed::List(VIEW.into()),
                    Role::Operator => Allowed::All,
                };
                policy.rules.push(Rule { caller, callee, protocol: Node::NAME.into(), methods });
            }
            policy.offers.push((callee, Node::NAME.into()));
        }
        policy.declare::<Keys>();
        for caller in Role::ALL {
            let methods = match caller {
                // A node keeps a replica and tells what it refused; one that is compromised makes no key and sees whose there are
                // only as hashes.
                Role::Bo | Role::Fo => Allowed::List([Changes::METHOD, Report::METHOD].into()),
                Role::Viewer => Allowed::List([List::METHOD].into()),
                Role::Operator => Allowed::All,
            };
            policy.rules.push(Rule { caller, callee: Role::Bo, protocol: Keys::NAME.into(), methods });
        }
        // Only a BO owns databases. An FO that offered keys would choose who comes in elsewhere.
        policy.offers.push((Role::Bo, Keys::NAME.into()));
        policy.declare::<Control>();
        for caller in Role::ALL {
            let methods = match caller {
                // A node that could edit routes could have calls sent to itself, if it is compromised. What an FO is listed is less,
                // and what a route was before is for people.
                Role::Bo | Role::Fo => Allowed::List([ListRoutes::METHOD, GetRoute::METHOD, ListForced::METHOD].into()),
                Role::Viewer => Allowed::List([ListRoutes::METHOD, GetRoute::METHOD, History::METHOD, ListForced::METHOD].into()),
                Role::Operator => Allowed::All,
            };
            policy.rules.push(Rule { caller, callee: Role::Bo, protocol: Control::NAME.into(), methods });
        }
        policy.offers.push((Role::Bo, Control::NAME.into()));
        policy.declare::<Router>();
        for callee in Role::ALL.into_iter().filter(|role| role.is_node()) {
            for caller in Role::ALL {
                let methods = match caller {
                    // A BO's policies say more than an FO's replica of them does.
                    Role::Bo | Role::Fo => Allowed::List([ListServices::METHOD, ListBreakers::METHOD].into()),
                    Role::Viewer => Allowed::List([ListServices::METHOD, GetService::METHOD, ListBreakers::METHOD].into()),
                    Role::Operator => Allowed::All,
                };
                policy.rules.push(Rule { caller, callee, protocol: Router::NAME.into(), methods });
            }
            policy.offers.push((callee, Router::NAME.into()));
            // What is called by route is called in the node's own name.
            policy.rules.push(Rule { caller: Role::Operator, callee, protocol: RoutedCalls::NAME.into(), methods: Allowed::All });
            policy.offers.push((callee, RoutedCalls::NAME.into()));
        }
        policy.declare::<RoutedCalls>();
        policy.declare::<Sync>();
        policy.declare::<Replica>();
        const FOLLOW: &[u16] = &[sync::Subscribe::METHOD, sync::PublisherStatusAsk::METHOD, sync::Head::METHOD];
        const FEED: &[u16] = &[sync::Apply::METHOD, sync::ReplicaAsk::METHOD, sync::HaveAsk::METHOD];
        for caller in Role::ALL {
            // Which publication a node may follow is the publication's to say; that a comparison reads all of a database is a
            // reason to let operators alone begin one.
            let publication = match caller {
                Role::Bo | Role::Fo => Allowed::List(FOLLOW.into()),
                Role::Viewer => Allowed::List([sync::PublisherStatusAsk::METHOD].into()),
                Role::Operator => Allowed::All,
            };
            policy.rules.push(Rule { caller, callee: Role::Bo, protocol: Sync::NAME.into(), methods: publication });
            // An FO that could feed a replica would put its own data before another FO's public.
            let replica = match caller {
                Role::Bo => Allowed::List(FEED.into()),
                Role::Fo => continue,
                Role::Viewer => Allowed::List([sync::ReplicaAsk::METHOD].into()),
                Role::Operator => Allowed::All,
            };
            for callee in Role::ALL.into_iter().filter(|role| role.is_node()) {
                policy.rules.push(Rule { caller, callee, protocol: Replica::NAME.into(), methods: replica.clone() });
            }
        }
        policy.tools();
        policy.offers.push((Role::Bo, Sync::NAME.into()));
        policy.offers.extend(Role::ALL.into_iter().filter(|role| role.is_node()).map(|role| (role, Replica::NAME.into())));
        policy
    }

    /// Who may do what with tools.
    fn tools(&mut self) {
        self.declare::<Registry>();
        self.declare::<Tools>();
        const LOOK: &[u16] = &[GetTool::METHOD, ListTools::METHOD, ToolHistory::METHOD, ListRules::METHOD, RuleHistory::METHOD];
        const SERVED: &[u16] = &[ToolsStatusAsk::METHOD, ListServed::METHOD, AuditAsk::METHOD];
        const OPERATE: &[u16] = &[ToolsStatusAsk::METHOD, ListServed::METHOD, AuditAsk::METHOD, CallTool::METHOD];
        for caller in Role::ALL {
            // Nodes have a replica of the tables. One that could edit them could give itself any tool, if it is compromised.
            let rows = match caller {
                Role::Bo | Role::Fo => continue,
                Role::Viewer => Allowed::List(LOOK.into()),
                Role::Operator => Allowed::All,
            };
            self.rules.push(Rule { caller, callee: Role::Bo, protocol: Registry::NAME.into(), methods: rows });
        }
        self.offers.push((Role::Bo, Registry::NAME.into()));
        for callee in [Role::Bo, Role::Fo] {
            for caller in Role::ALL {
                let methods = match caller {
                    // An FO has nothing that another node could not do itself. What is passed on to a BO brings its own proof with it.
                    Role::Bo | Role::Fo if callee == Role::Fo => continue,
                    Role::Bo | Role::Fo => &[PassOn::METHOD],
                    Role::Viewer => SERVED,
                    // Not all of it: people call in their own name.
                    Role::Operator => OPERATE,
                };
                self.rules.push(Rule { caller, callee, protocol: Tools::NAME.into(), methods: Allowed::List(methods.into()) });
            }
            self.offers.push((callee, Tools::NAME.into()));
        }
    }

    /// Adds a rule. Rules add up: two for the same roles and protocol allow what either allows.
    ///
    /// # Errors
    /// [`PolicyError`]; the table is then as it was.
    pub fn allow(&mut self, rule: Rule) -> Result<(), PolicyError> {
        may_change(&rule.protocol, rule.callee, self.rules.len())?;
        self.rules.push(rule);
        Ok(())
    }

    /// Lets nodes of `role` offer `protocol`.
    ///
    /// # Errors
    /// [`PolicyError`]; the table is then as it was.
    pub fn offer(&mut self, role: Role, protocol: &str) -> Result<(), PolicyError> {
        may_change(protocol, role, self.offers.len())?;
        if !self.may_offer(role, protocol) {
            self.offers.push((role, protocol.into()));
        }
        Ok(())
    }

    /// Makes the methods of `P` known by name to [`Policy::rows`]; allows nothing.
    pub fn declare<P: Protocol>(&mut self) {
        if !self.known.iter().any(|(name, _)| &**name == P::NAME) {
            self.known.push((P::NAME.into(), P::methods()));
        }
    }

    fn rules_for<'a>(&'a self, caller: Role, callee: Role, protocol: &'a str) -> impl Iterator<Item = &'a Allowed> {
        self.rules
            .iter()
            .filter(move |rule| rule.caller == caller && rule.callee == callee && &*rule.protocol == protocol)
            .map(|rule| &rule.methods)
    }

    /// Whether `caller` may call `method` of `protocol` on a `callee`. Walks the table: for each message,
    /// use what [`Policy::permitted`] gave when the name was bound.
    pub fn may_call(&self, caller: Role, callee: Role, protocol: &str, method: u16) -> bool {
        self.rules_for(caller, callee, protocol).any(|methods| methods.contains(method))
    }

    /// Which of `methods`, those that the callee has, `caller` may call.
    pub fn permitted(&self, caller: Role, callee: Role, protocol: &str, methods: &[Method]) -> MethodSet {
        let mut set = MethodSet::default();
        for allowed in self.rules_for(caller, callee, protocol) {
            set.extend(methods.iter().map(|method| method.number).filter(|number| allowed.contains(*number)));
        }
        set
    }

    /// Whether a node of `role` may offer `protocol`: what it gossips beyond that is ignored.
    pub fn may_offer(&self, role: Role, protocol: &str) -> bool {
        self.offers.iter().any(|(who, what)| *who == role && &**what == protocol)
    }

    /// The table written out: every caller and callee for every method of every protocol that a rule, an
    /// offer or [`Policy::declare`] names. A protocol whose methods are not known has one row, for `*`:
    /// whether everything in it is allowed.
    pub fn rows(&self) -> Vec<Row> {
        let mut protocols: Vec<&str> = self.known.iter().map(|(name, _)| &**name).collect();
        protocols.extend(self.rules.iter().map(|rule| &*rule.protocol));
        protocols.extend(self.offers.iter().map(|(_, protocol)| &**protocol));
        protocols.sort_unstable();
        protocols.dedup();
        let mut rows = Vec::new();
        for protocol in protocols {
            let methods = self.known.iter().find(|(name, _)| &**name == protocol).map(|(_, methods)| *methods);
            for callee in Role::ALL.into_iter().filter(|role| role.is_node()) {
                for caller in Role::ALL {
                    let row = |method: &str, allowed| Row { caller, callee, protocol: protocol.into(), method: method.into(), allowed };
                    match methods {
                        Some(methods) => rows
                            .extend(methods.iter().map(|method| row(method.name, self.may_call(caller, callee, protocol, method.number)))),
                        None => rows.push(row("*", self.rules_for(caller, callee, protocol).any(|methods| *methods == Allowed::All))),
                    }
                }
            }
        }
        rows
    }
}

fn may_change(protocol: &str, callee: Role, count: usize) -> Result<(), PolicyError> {
    // Services of bytes are users' own, though their protocol is ours.
    if protocol.starts_with(RESERVED) && protocol != ByteService::NAME {
        return Err(PolicyError::Reserved(protocol.chars().take(crate::address::MAX_NAME).collect()));
    }
    if !callee.is_node() {
        return Err(PolicyError::NoNode(callee));
    }
    if count >= MAX_RULES { Err(PolicyError::TooMany) } else { Ok(()) }
}

/// Whether callers of `role` are told why an actor died. Error texts carry paths, SQL and what users typed; an
/// FO faces the public and may be compromised, so it sees other nodes' trees without them.
pub const fn sees_errors(role: Role) -> bool {
    !matches!(role, Role::Fo)
}

/// One line of [`Policy::rows`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Who calls.
    pub caller: Role,
    /// Who is called.
    pub callee: Role,
    /// The protocol's name.
    pub protocol: Box<str>,
    /// The method's name, or `*`.
    pub method: Box<str>,
    /// Whether it may.
    pub allowed: bool,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.allowed { "may call" } else { "may not call" };
        write!(f, "{} {verb} {}.{} on {}", self.caller, self.protocol, self.method, self.callee)
    }
}

/// Method numbers, to be asked for each message: one shift and a mask for the numbers below 128 that nearly
/// every protocol has, a binary search for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MethodSet {
    low: u128,
    high: Vec<u16>,
}

impl MethodSet {
    /// Whether `method` is in it.
    pub fn contains(&self, method: u16) -> bool {
        if method < 128 { self.low >> method & 1 == 1 } else { self.high.binary_search(&method).is_ok() }
    }

    /// Whether nothing is: a name bound for this caller would be of no use.
    pub const fn is_empty(&self) -> bool {
        self.low == 0 && self.high.is_empty()
    }

    /// How many are.
    pub const fn len(&self) -> usize {
        self.low.count_ones() as usize + self.high.len()
    }
}

impl Extend<u16> for MethodSet {
    fn extend<I: IntoIterator<Item = u16>>(&mut self, methods: I) {
        for method in methods {
            if method < 128 {
                self.low |= 1 << method;
            } else if let Err(place) = self.high.binary_search(&method) {
                self.high.insert(place, method);
            }
        }
    }
}

impl FromIterator<u16> for MethodSet {
    fn from_iter<I: IntoIterator<Item = u16>>(methods: I) -> Self {
        let mut set = Self::default();
        set.extend(methods);
        set
    }
}

#[cfg(test)]
mod tests;
