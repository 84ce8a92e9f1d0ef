//! How long the threads of this process were running, whatever else the machine did. Where shaders
//! run on the CPU this is what a kernel costs; a clock on the wall also counts the programs that
//! were let in between.

/// Nanoseconds that all threads of this process have run; `None` where the system does not say.
///
/// Threads that end in between are forgotten with what they ran, so the difference of two readings
/// is only good while none does.
#[cfg(target_os = "linux")]
pub fn nanoseconds() -> Option<u64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        // The first of three numbers; a thread that ended since is not there.
        let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("schedstat")) else {
            continue;
        };
        total += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(total)
}

/// Nothing here says it without code of the system's own.
#[cfg(not(target_os = "linux"))]
pub fn nanoseconds() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn sleeping_costs_nothing_and_work_does() {
        let begin = nanoseconds().expect("Linux says");
        std::thread::sleep(Duration::from_millis(20));
        let slept = nanoseconds().expect("Linux says") - begin;
        let start = Instant::now();
        let mut sum = 0.0f64;
        while start.elapsed() < Duration::from_millis(60) {
            sum += std::hint::black_box(1.5f64).sqrt();
        }
        assert!(sum > 0.0);
        std::thread::sleep(Duration::from_millis(1));
        let worked = nanoseconds().expect("Linux says") - begin - slept;
        // Other tests run in this process, so only the lower bound is sure.
        assert!(worked > 1_000_000, "{worked} ns of work, {slept} ns asleep");
    }
}
