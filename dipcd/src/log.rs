//! What dipcd says, and where. Errors, warnings and events go to standard error, one line each:
//!
//! ```text
//! WARN link lost peer=2 why="heartbeat"
//! ```
//!
//! and with -v, -c or -d trace lines go to standard output, in the form of the original (task
//! number, file, line; hours, minutes, seconds, hundredths since the start):
//!
//! ```text
//! [4711@referee.rs:212]{0:00:12:07} claim granted peer=2 key=40
//! ```
//!
//! `DIPCD_LOG` chooses what goes to standard error (`DIPCD_LOG=debug`, `dipcd::link=trace`).
//! Conversions of byte order are logged under the targets [`CONVERSION`] and [`CONVERTED`].
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

/// The target of events that say that something is converted (`-c`).
pub const CONVERSION: &str = "conversion";
/// The target of events that say what was converted (`-d`).
pub const CONVERTED: &str = "converted";
/// The environment variable with the filter of standard error.
pub const VARIABLE: &str = "DIPCD_LOG";

/// What goes to standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbosity {
    /// `-v`: everything of dipcd's own but conversions.
    pub trace: bool,
    /// `-c`: that something is converted.
    pub conversions: bool,
    /// `-d`: what was converted.
    pub converted: bool,
}

impl Verbosity {
    /// The options that ask for it, in one argument; `None` if it is silence.
    pub fn option(self) -> Option<String> {
        let letters = [(self.trace, 'v'), (self.conversions, 'c'), (self.converted, 'd')];
        let given: String =
            letters.iter().filter(|(given, _)| *given).map(|(_, letter)| letter).collect();
        (!given.is_empty()).then(|| format!("-{given}"))
    }

    fn wants(self, metadata: &Metadata<'_>) -> bool {
        match metadata.target() {
            CONVERSION => self.conversions,
            CONVERTED => self.converted,
            // Libraries have traces of their own.
            target => self.trace && target.starts_with("dipc"),
        }
    }

    fn level(self) -> LevelFilter {
        if self == Verbosity::default() { LevelFilter::OFF } else { LevelFilter::TRACE }
    }
}

impl<S> Filter<S> for Verbosity {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level())
    }
}

/// What goes to standard output now, and how that is changed.
struct Traces {
    set: Box<dyn Fn(Verbosity) -> Result<(), String> + Send + Sync>,
    now: Mutex<Verbosity>,
}

static TRACES: OnceLock<Traces> = OnceLock::new();

/// Whether `-v` lines are written.
pub fn is_tracing() -> bool {
    TRACES.get().is_some_and(|traces| traces.now.lock().trace)
}

/// What goes to standard output.
pub fn verbosity() -> Verbosity {
    TRACES.get().map_or(Verbosity::default(), |traces| *traces.now.lock())
}

/// Begins or ends to write `-v` lines (`dipcctl trace`).
pub fn trace(on: bool) -> Result<(), String> {
    let traces = TRACES.get().ok_or("nothing is logged")?;
    let mut now = traces.now.lock();
    let wanted = Verbosity { trace: on, ..*now };
    (traces.set)(wanted)?;
    *now = wanted;
    Ok(())
}

/// Begins to log. Called once, first of all; time counts from here.
pub fn start(verbosity: Verbosity) {
    let (directives, complaint) = directives();
    let (layers, set) = layers(verbosity, directives, io::stderr, io::stdout);
    layers.init();
    // A second start would have panicked above.
    let _ = TRACES.set(Traces { set: Box::new(set), now: Mutex::new(verbosity) });
    if let Some(complaint) = complaint {
        tracing::warn!(complaint, "{VARIABLE} is not understood");
    }
}

/// What standard error shows: `DIPCD_LOG`, or events from info upwards.
fn directives() -> (EnvFilter, Option<String>) {
    let usual = || EnvFilter::new("info");
    match std::env::var(VARIABLE) {
        Err(_) => (usual(), None),
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(chosen) => (chosen, None),
            Err(error) => (usual(), Some(error.to_string())),
        },
    }
}

/// The two streams, and what changes the second one's verbosity.
fn layers<E, O>(
    verbosity: Verbosity,
    filter: EnvFilter,
    errors: E,
    out: O,
) -> (impl SubscriberInitExt, impl Fn(Verbosity) -> Result<(), String> + Send + Sync)
where
    E: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    O: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let events = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .event_format(EventLine)
        .with_writer(errors)
        .with_filter(filter);
    let (verbosity, handle) = reload::Layer::new(verbosity);
    let traces = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .event_format(TraceLine { started: Instant::now() })
        .with_writer(out)
        .with_filter(verbosity);
    let set = move |verbosity: Verbosity| {
        handle.reload(verbosity).map_err(|error: reload::Error| error.to_string())
    };
    (tracing_subscriber::registry().with(events).with(traces), set)
}

/// `LEVEL message key=value`.
struct EventLine;

impl<S, N> FormatEvent<S, N> for EventLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        write!(line, "{} ", metadata.level())?;
        if *metadata.level() > Level::INFO {
            write!(line, "{}:{} ", file_name(metadata), metadata.line().unwrap_or(0))?;
        }
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

/// `[task@file:line]{h:m:s:1/100} message key=value`.
struct TraceLine {
    started: Instant,
}

impl<S, N> FormatEvent<S, N> for TraceLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let task = rustix::thread::gettid().as_raw_nonzero();
        let place = (file_name(metadata), metadata.line().unwrap_or(0));
        let time = clock(self.started.elapsed());
        write!(line, "[{task}@{}:{}]{{{time}}} ", place.0, place.1)?;
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

fn file_name(metadata: &Metadata<'static>) -> &'static str {
    let path = metadata.file().unwrap_or("?");
    path.rsplit('/').next().unwrap_or(path)
}

/// Hours, minutes, seconds and hundredths.
fn clock(since: Duration) -> String {
    let (seconds, hundredths) = (since.as_secs(), since.subsec_millis() / 10);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}:{hundredths:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What standard error and standard output get of the same few events.
    fn logged(verbosity: Verbosity, directives: &str) -> (Vec<String>, Vec<String>) {
        let (errors, out) = (Buffer::default(), Buffer::default());
        let (to_errors, to_out) = (errors.clone(), out.clone());
        let filter = EnvFilter::new(directives);
        let (layers, _) =
            layers(verbosity, filter, move || to_errors.clone(), move || to_out.clone());
        let guard = layers.set_default();
        tracing::warn!(peer = 2, "link lost");
        tracing::debug!(op = "msgget", key = 40);
        tracing::debug!(target: CONVERSION, "u32");
        tracing::trace!(target: CONVERTED, from = 1, to = 16_777_216);
        drop(guard);
        let lines = |buffer: Buffer| {
            let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
            text.lines().map(str::to_owned).collect()
        };
        (lines(errors), lines(out))
    }

    #[test]
    fn standard_error_has_events_and_standard_output_nothing() {
        let (errors, out) = logged(Verbosity::default(), "info");
        assert_eq!(errors, ["WARN link lost peer=2"]);
        assert_eq!(out, [""; 0]);
    }

    #[test]
    fn debug_lines_say_where_they_come_from() {
        let (errors, _) = logged(Verbosity::default(), "debug");
        assert_eq!(errors.len(), 3, "{errors:?}");
        let line = &errors[1];
        assert!(
            line.starts_with("DEBUG log.rs:") && line.contains("op=\"msgget\" key=40"),
            "{line}"
        );
    }

    #[test]
    fn each_option_has_its_lines_in_the_form_of_the_original() {
        let task = rustix::thread::gettid().as_raw_nonzero();
        for (verbosity, ends) in [
            (Verbosity { trace: true, ..Default::default() }, &["peer=2", "key=40"][..]),
            (Verbosity { conversions: true, ..Default::default() }, &["u32"]),
            (Verbosity { converted: true, ..Default::default() }, &["from=1 to=16777216"]),
        ] {
            let (errors, out) = logged(verbosity, "info");
            assert_eq!((errors.len(), out.len()), (1, ends.len()), "{out:?}");
            for (line, end) in out.iter().zip(ends) {
                assert!(line.starts_with(&format!("[{task}@log.rs:")), "{line}");
                assert!(line.contains("]{0:00:0") && line.ends_with(end), "{line}");
            }
        }
    }

    #[test]
    fn hours_minutes_seconds_hundredths() {
        assert_eq!(clock(Duration::from_millis(0)), "0:00:00:00");
        assert_eq!(clock(Duration::from_millis(3_723_459)), "1:02:03:45");
        assert_eq!(clock(Duration::from_secs(360_000)), "100:00:00:00");
    }
}
