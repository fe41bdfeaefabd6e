//! Who may come in from outside: keys, and tokens that prove a user.
//!
//! The owner of `control.db` runs the service `horos.keys`; every node keeps a replica of what it knows and answers
//! from that, so that no request waits for another node and a guess never leaves the node it was made on.
