#![no_main]

#[path = "../entry.rs"]
#[expect(dead_code, reason = "a target calls one of them")]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::frame(data));
