//! Timelines in the trace event format of Chrome and Perfetto (JSON array, `ph: "X"`, microseconds;
//! "Trace Event Format", Google 2016). Predicted and measured timelines use the same tracks, so
//! that the two can be laid side by side.

use crate::simulate::{Span, Track};

/// A trace of some timelines, each as a process of its own.
pub fn trace(timelines: &[(&str, &[Span])]) -> String {
    let mut events = Vec::new();
    for (process, (name, spans)) in timelines.iter().enumerate() {
        events.push(named("process_name", process, 0, name));
        for (thread, track) in Track::ALL.iter().enumerate() {
            events.push(named("thread_name", process, thread, track.name()));
        }
        for span in *spans {
            let thread = Track::ALL.iter().position(|track| *track == span.track).unwrap_or(0);
            let (start, length) = (1e6 * span.start_s, 1e6 * (span.end_s - span.start_s).max(0.0));
            events.push(format!(
                "{{\"name\":{},\"ph\":\"X\",\"pid\":{process},\"tid\":{thread},\"ts\":{start:.3},\
                 \"dur\":{length:.3}}}",
                quoted(&span.name)
            ));
        }
    }
    format!("[\n{}\n]\n", events.join(",\n"))
}

fn named(what: &str, process: usize, thread: usize, name: &str) -> String {
    format!(
        "{{\"name\":\"{what}\",\"ph\":\"M\",\"pid\":{process},\"tid\":{thread},\"args\":\
         {{\"name\":{}}}}}",
        quoted(name)
    )
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_become_events_of_their_track() {
        let name = "a \"b\"".to_owned();
        let span = Span { track: Track::Compute, name, start_s: -0.5, end_s: 1.0 };
        let text = trace(&[("predicted", &[span])]);
        assert!(text.contains(r#""name":"a \"b\"","ph":"X","pid":0,"tid":3,"ts":-500000.000"#));
        assert!(text.contains(r#""dur":1500000.000"#), "{text}");
        assert!(text.starts_with('[') && text.trim_end().ends_with(']'));
    }
}
