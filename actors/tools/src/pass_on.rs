//! Calls that are not this node's to do: passed on to the node that has what they need.
//!
//! A tool that writes, or that reads a file this node has not, is done where the file is. What goes there is the call and the *credential*
//! that was shown here, to be proved there again: no node is believed who its caller is.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::{Call, Output, ToolError};

/// Has a call done by the node that can. Kinds are given one; `nodes` decides where it leads.
pub trait PassOn: fmt::Debug + Send + Sync + 'static {
    /// Passes `call` on and waits for what comes of it, until [`Call::until`] at most.
    ///
    /// # Errors
    /// The other node's, as they are. Of its own: [`ToolError::Unavailable`] had surely no effect; after [`ToolError::Unknown`] it may have
    /// been done.
    ///
    /// # Cancel safety
    /// Dropped, the other node is told to give it up, and it may have been done.
    fn pass_on<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>>;
}
