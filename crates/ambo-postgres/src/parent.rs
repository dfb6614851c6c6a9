//! The child's half of "no process outlives the one that started it".

use std::io::{self, Read};
use std::{process, thread};

/// Ends this process when the process that started it is gone.
///
/// For worker processes of tests, benchmarks and demonstrations. The parent starts the child with
/// `stdin(Stdio::piped())` and keeps the `ChildStdin` for as long as the child may live; it takes it out of the
/// `Child`, whose `wait` would close it. When the parent ends, by `SIGKILL` too, the kernel closes that pipe, and
/// this process exits with status 0 without running destructors.
///
/// Returns at once; a thread of its own does the waiting. A process whose standard input is closed, or is
/// `/dev/null`, exits at once, so call this only where the parent plays its part.
pub fn exit_with_parent() {
    let wait = || {
        let mut stdin = io::stdin().lock();
        let mut ignored = [0; 256];
        loop {
            match stdin.read(&mut ignored) {
                Ok(0) => process::exit(0),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => process::exit(0),
            }
        }
    };
    // A process that cannot start a thread cannot do its work either; it ends here rather than outlive its parent.
    if thread::Builder::new().name("exit-with-parent".into()).spawn(wait).is_err() {
        process::exit(1);
    }
}
