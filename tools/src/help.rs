//! `--help` from the manual page: its synopsis, what it says in one line, and each option and
//! command with the first sentence about it. So there is one text to keep, and the page is it.
//!
//! This understands as much of mdoc(7) as the tools' own pages use. A macro that it does not know
//! stands in the text as its words.
#![forbid(unsafe_code)]

/// Columns of a line of help.
const COLUMNS: usize = 80;
/// Where what an option does begins.
const INDENT: usize = 26;

/// The help of the tool whose page this is.
pub fn help(page: &str) -> String {
    let mut help = Help { name: page_name(page), ..Help::default() };
    for line in page.lines() {
        help.line(line);
    }
    help.end_item();
    help.text()
}

fn page_name(page: &str) -> String {
    let name = page.lines().find_map(|line| line.strip_prefix(".Nm "));
    name.unwrap_or_default().trim().to_owned()
}

/// What has been read of a page so far.
#[derive(Default)]
struct Help {
    name: String,
    section: String,
    /// `.Nd`.
    purpose: String,
    /// One for each `.Nm` of the synopsis.
    uses: Vec<String>,
    /// What stands left, and the first sentence about it.
    items: Vec<(String, String)>,
    /// The item whose sentence is being read.
    open: Option<(String, String)>,
}

impl Help {
    fn line(&mut self, line: &str) {
        let (word, rest) = match line.strip_prefix('.') {
            Some(request) => request.split_once(' ').unwrap_or((request, "")),
            None => ("", line),
        };
        match word {
            "Sh" | "Ss" | "El" | "Pp" | "Bd" => {
                self.end_item();
                if word == "Sh" {
                    rest.clone_into(&mut self.section);
                }
            }
            "Nd" => rest.clone_into(&mut self.purpose),
            "Nm" if self.section == "SYNOPSIS" => self.uses.push(self.name.clone()),
            "It" => {
                self.end_item();
                if rest.starts_with("Fl ") || rest.starts_with("Cm ") {
                    self.open = Some((rendered(rest, &self.name), String::new()));
                }
            }
            "Bl" | "Ed" | "Dd" | "Dt" | "Os" => {}
            _ => self.words(&rendered(line.strip_prefix('.').unwrap_or(line), &self.name)),
        }
    }

    fn words(&mut self, words: &str) {
        let text = match (&mut self.open, self.uses.last_mut()) {
            (Some((_, text)), _) if !text.ends_with('.') => text,
            (None, Some(of_use)) if self.section == "SYNOPSIS" => of_use,
            _ => return,
        };
        let attaches = words.starts_with([',', '.', ';', ':', ')']);
        if !text.is_empty() && !attaches {
            text.push(' ');
        }
        text.push_str(words);
    }

    fn end_item(&mut self) {
        if let Some((head, text)) = self.open.take() {
            let sentence = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
            let sentence = sentence.trim_end_matches(['.', ':']).to_owned();
            self.items.push((head, sentence));
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (index, of_use) in self.uses.iter().enumerate() {
            let before = if index == 0 { "usage: " } else { "       " };
            wrap(&mut text, before, of_use, before.len() + self.name.len() + 1);
        }
        let mut purpose = self.purpose.chars();
        let first = purpose.next().map(|letter| letter.to_uppercase().to_string());
        text += &format!("{}{}.\n\n", first.unwrap_or_default(), purpose.as_str());
        for (head, sentence) in &self.items {
            let head = format!("  {head:width$}", width = INDENT - 4);
            if head.len() > INDENT - 2 {
                text += &format!("{head}\n");
                wrap(&mut text, &" ".repeat(INDENT), sentence, INDENT);
            } else {
                wrap(&mut text, &format!("{head}  "), sentence, INDENT);
            }
        }
        text
    }
}

/// Appends words behind `before`, in lines that begin with `indent` blanks from the second on. What
/// stands in brackets is not taken apart.
fn wrap(text: &mut String, before: &str, words: &str, indent: usize) {
    let mut line = before.to_owned();
    let mut fresh = true;
    for word in pieces(words) {
        if !fresh && line.len() + 1 + word.len() > COLUMNS {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
            fresh = true;
        }
        if !fresh {
            line.push(' ');
        }
        line.push_str(word);
        fresh = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// The words of a text; one in brackets is one word.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (index, letter) in text.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 => {
                pieces.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// A line of macros, or of text, as it reads.
fn rendered(line: &str, name: &str) -> String {
    let mut out = Line::default();
    let mut macro_now = "";
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "Fl" | "Ar" | "Cm" | "Pa" | "Ev" | "Em" | "Sy" | "Li" | "Ql" | "Dv" => macro_now = word,
            "Nm" => out.word(name),
            "No" => macro_now = "",
            "Ns" => out.joined = true,
            "Op" => out.enclose("[", "]"),
            "Pq" => out.enclose("(", ")"),
            "Oo" => {
                out.word("[");
                out.joined = true;
            }
            "Oc" => out.text.push(']'),
            "Xr" => {
                let (page, section) = (words.next(), words.next());
                out.word(&format!("{}({})", page.unwrap_or(""), section.unwrap_or("")));
            }
            "," | "." | ";" | ":" | ")" => {
                // At the end of a line it stands behind what encloses the others.
                if words.clone().next().is_none() {
                    out.close();
                }
                out.text.push_str(word);
            }
            "|" | "(" => out.word(word),
            word if macro_now == "Fl" => out.word(&format!("-{word}")),
            word => out.word(word),
        }
    }
    out.close();
    out.text.replace("\\-", "-").replace("\\&", "")
}

/// One rendered line as it grows.
#[derive(Default)]
struct Line {
    text: String,
    /// The next word follows without a blank.
    joined: bool,
    /// What closes at the end of the line.
    ends: String,
}

impl Line {
    fn enclose(&mut self, opening: &str, closing: &str) {
        self.word(opening);
        self.joined = true;
        self.ends.insert_str(0, closing);
    }

    fn close(&mut self) {
        self.text.push_str(&std::mem::take(&mut self.ends));
    }

    fn word(&mut self, word: &str) {
        if !self.text.is_empty() && !self.joined && !self.text.ends_with('(') {
            self.text.push(' ');
        }
        self.joined = false;
        self.text.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
.Dd November 21, 2026
.Sh NAME
.Nm thing
.Nd do a thing
.Sh SYNOPSIS
.Nm
.Op Fl av
.Op Fl i Ar id | Fl -all
.Ar name ...
.Nm
.Fl -help
.Sh DESCRIPTION
.Nm
does it.
.Bl -tag -width Ds
.It Fl a , -all
All of
.Ar them ,
see
.Xr ipcs 1 .
More is said here.
.It Fl -a-very-long-option Ar argument
Wraps.
Second.
.It Cm go Oo Ar where Oc
Goes: there
.Pq at once .
And back.
.El
.Sh FILES
.Bl -tag -width Ds
.It Pa /etc/x
A file.
.El
";

    #[test]
    fn the_page_says_it_once() {
        let expected = "\
usage: thing [-av] [-i id | --all] name ...
       thing --help
Do a thing.

  -a, --all               All of them, see ipcs(1)
  --a-very-long-option argument
                          Wraps
  go [where]              Goes: there (at once)
";
        assert_eq!(help(PAGE), expected);
    }

    #[test]
    fn long_lines_are_wrapped_between_brackets() {
        let mut text = String::new();
        let words = format!("x {}", "[-o value] ".repeat(12));
        wrap(&mut text, "usage: ", &words, 9);
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("         [")), "{text}");
    }
}
