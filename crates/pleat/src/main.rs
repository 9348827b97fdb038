//! The binary `pleat`. All that it does is in the library's `cli`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator would be given huge pages for arenas that stay half empty: 30 MB for a node that has nothing to do, and no
    // difference in CPU that could be measured. A kernel that does not know the call leaves things as they are.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(true);
    pleat::cli::main()
}
