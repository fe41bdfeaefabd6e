//! Rows become tools: real files, whoever writes them.

mod bounds;
mod edits;
mod files;
mod policy;
mod rows;
mod scale;
mod search;
mod world;
