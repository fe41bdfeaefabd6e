//! The operator's command line, and a playground: `horos up` runs two nodes with a small shop on them.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod greeter;
mod shop;

fn main() -> std::process::ExitCode {
    horos_nodes::main(|n| {
        if n.is_playground() {
            shop::register(n);
            greeter::register(n);
        }
    })
}
