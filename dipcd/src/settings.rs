//! The configuration of a running dipcd: where it came from, what `dipcctl set` has changed since,
//! and how both become a new one. SIGHUP and `dipcctl reload` read the files again, and what was
//! set is then as in the file.
//!
//! A change is an edited text that is parsed like any file, so that a value which is set is checked
//! as one which is written, alone and together with the others.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::allow::AllowList;
use crate::cli::{RunOptions, Source};
use crate::config::{Config, Error, entries, not_yet};
use crate::daemon::Daemon;
use crate::{policy, succession};

/// What was wrong, a line each.
pub type Wrong = Vec<String>;

/// The text that the configuration was made of.
#[derive(Clone)]
struct Text {
    file: PathBuf,
    /// As it was read last.
    text: String,
    /// What `set` has changed since.
    changes: BTreeMap<&'static str, String>,
}

/// Where the configuration comes from.
pub struct Settings {
    /// How dipcd was started.
    pub options: RunOptions,
    text: Mutex<Text>,
}

impl Settings {
    /// Reads the configuration for the first time.
    pub fn open(options: &RunOptions) -> Result<(Settings, Config), Wrong> {
        let text = Text::read(&options.source)?;
        let config = text.parse(options).map_err(|errors| lines(&errors))?;
        let config = accepted(config)?;
        Ok((Settings { options: options.clone(), text: Mutex::new(text) }, config))
    }

    /// Both files are read again. If anything is wrong with them, nothing changes.
    pub fn reload(&self, daemon: &Daemon) -> Result<(), Wrong> {
        let mut text = self.text.lock();
        let fresh = match self.options.source {
            Source::File(_) => Text::read(&self.options.source)?,
            // There is no file that could have changed.
            Source::Single => Text { changes: BTreeMap::new(), ..text.clone() },
        };
        let config = fresh.parse(&self.options).map_err(|errors| lines(&errors))?;
        self.go_on_with(daemon, config, |errors| lines(&errors))?;
        *text = fresh;
        Ok(())
    }

    /// One entry is changed until the files are read again.
    pub fn set(&self, daemon: &Daemon, entry: &str, value: &str) -> Result<(), Wrong> {
        let entry =
            entries::find(entry).ok_or_else(|| vec![format!("{entry:?}: no such entry")])?;
        if value.contains(|letter: char| letter == '#' || letter.is_control()) {
            return Err(vec![format!("{}: a value is one line without comment", entry.name)]);
        }
        let mut text = self.text.lock();
        let mut changed = text.clone();
        changed.changes.insert(entry.name, value.trim().to_owned());
        // The line is of an edited text that nobody has seen.
        let said = |error: &Error| {
            let Error { entry, expected, found, .. } = error;
            format!("{entry}: expected {expected}, found {found}")
        };
        let config = changed
            .parse(&self.options)
            .map_err(|errors| errors.iter().map(said).collect::<Wrong>())?;
        // What stands in a file that the entry names is not for whoever may only change settings.
        let not_shown = |errors: Vec<Error>| {
            lines(&errors).iter().for_each(|error| tracing::error!(op = "set", %error));
            vec![format!("{}: its file cannot be used; dipcd's log says why", entry.name)]
        };
        self.go_on_with(daemon, config, not_shown)?;
        *text = changed;
        Ok(())
    }

    /// Makes a configuration the running one.
    fn go_on_with(
        &self,
        daemon: &Daemon,
        config: Config,
        said: impl Fn(Vec<Error>) -> Wrong,
    ) -> Result<(), Wrong> {
        let config = accepted(config)?;
        let allow = AllowList::of_node(&config, self.options.admission).map_err(said)?;
        daemon.reload(config, allow).map_err(|entries| {
            let line = |entry| format!("{entry}: cannot change while dipcd runs");
            entries.into_iter().map(line).collect::<Wrong>()
        })?;
        policy::publish(&daemon.config())
            .map_err(|error| vec![format!("programs cannot be told: {error}")])
    }
}

/// What dipcd can do, with the referee that its nodes have agreed on.
fn accepted(config: Config) -> Result<Config, Wrong> {
    let missing: Wrong = not_yet(&config)
        .iter()
        .map(|name| format!("{name}: not available in this version"))
        .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    succession::elected(config).map_err(|error| vec![error.to_string()])
}

fn lines(errors: &[Error]) -> Wrong {
    errors.iter().map(ToString::to_string).collect()
}

impl Text {
    fn read(source: &Source) -> Result<Text, Wrong> {
        let (file, text) = source.text().map_err(|errors| lines(&errors))?;
        Ok(Text { file, text, changes: BTreeMap::new() })
    }

    fn parse(&self, options: &RunOptions) -> Result<Config, Vec<Error>> {
        let config = Config::parse(&self.file, &self.edited())?;
        Ok(if options.lift_timeouts { config.without_timeouts() } else { config })
    }

    /// The text with the changes: each in the place of the line that gave the entry, or before all
    /// lines. Sections of programs are left alone.
    fn edited(&self) -> String {
        let mut changes = self.changes.clone();
        let (mut text, mut outside) = (String::new(), true);
        for line in self.text.lines() {
            outside &= !line.trim_start().starts_with('[');
            let name = line.split(['=', '#']).next().unwrap_or("").trim();
            let change = if outside { changes.remove_entry(name) } else { None };
            match change {
                Some((name, value)) => text += &format!("{name} = {value}\n"),
                None => text += &format!("{line}\n"),
            }
        }
        let before: String =
            changes.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        before + &text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, changes: &[(&'static str, &str)]) -> String {
        let changes = changes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Text { file: "dipc.conf".into(), text: text.to_owned(), changes }.edited()
    }

    #[test]
    fn a_change_takes_the_place_of_its_line_outside_sections() {
        let text = "# top\nkeys = none # no\nheartbeat=1\n[program /x]\nkeys = all\n";
        let expected = "# top\nkeys = 0x28\nheartbeat=1\n[program /x]\nkeys = all\n";
        assert_eq!(edited(text, &[("keys", "0x28")]), expected);
    }

    #[test]
    fn an_entry_that_was_not_given_stands_first() {
        let text = "[program /x]\nkeys = all\n";
        let changes = [("keys", "all"), ("send", "strict")];
        let expected = "keys = all\nsend = strict\n[program /x]\nkeys = all\n";
        assert_eq!(edited(text, &changes), expected);
        assert_eq!(edited(text, &[]), text);
    }
}
