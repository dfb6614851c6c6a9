//! Text that fits: ages, moments, and other people's text made safe and short enough for a terminal.

use jiff::{SignedDuration, Timestamp};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// How long ago, in its largest unit: `5s`, `12m`, `3h`, `2d`. What lies ahead is `in 5m`.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let span = now.duration_since(then);
    // A run may be younger than the look at the clock.
    if span.is_negative() && span > SignedDuration::from_secs(-1) {
        return "0s".to_owned();
    }
    let text = length(span.as_secs().unsigned_abs());
    if span.is_negative() { format!("in {text}") } else { text }
}

/// A length of time in its largest unit that says enough.
pub(crate) fn length(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment to the second, in UTC, and how long ago that is.
pub(crate) fn moment(now: Timestamp, then: Timestamp) -> String {
    let since = age(now, then);
    let since = if since.starts_with("in ") { since } else { format!("{since} ago") };
    format!("{} ({since})", then.strftime("%Y-%m-%d %H:%M:%S UTC"))
}

/// JSON on one line, the space between its tokens as it was.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    clean(&words.join(" "))
}

/// `text` without what would steer a terminal: names and messages come from other people. What is not seen itself but turns
/// round or hides what stands beside it is written out, so that two names that look alike can be told apart.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if c.is_control() => out.push('\u{fffd}'),
            _ if is_unseen(c) => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
    }
    out
}

/// Marks of direction, breaks of lines, and what has no width. The joiners U+200C and U+200D are left: scripts need them.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` in at most `width` columns; what is left out shows as `…`.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let mut out = String::new();
    for c in text.chars() {
        let next = c.width().unwrap_or(0);
        if used + next + 1 > width {
            break;
        }
        used += next;
        out.push(c);
    }
    out.push('…');
    out
}

/// `text` in lines of at most `width` columns, broken between words, and within one only where it is wider than a line.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace().flat_map(|word| pieces(word, width)) {
        let line =
            lines.last_mut().filter(|line| line.is_empty() || line.width() + 1 + word.width() <= width);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A word in pieces that fit, each of a character at least.
fn pieces(word: &str, width: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut begin, mut used) = (0, 0);
    for (at, c) in word.char_indices() {
        let next = c.width().unwrap_or(0);
        if used + next > width && at > begin {
            pieces.push(&word[begin..at]);
            (begin, used) = (at, 0);
        }
        used += next;
    }
    pieces.push(&word[begin..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let ago = |seconds| age(now, now - SignedDuration::from_secs(seconds));
        assert_eq!(
            [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(ago),
            ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]
        );
        assert_eq!(ago(-300), "in 5m");
        assert_eq!(age(now, now + SignedDuration::from_millis(3)), "0s");
    }

    #[test]
    fn long_text_is_cut_where_the_columns_end() {
        assert_eq!(cut("fulfil", 6), "fulfil");
        assert_eq!(cut("fulfil", 5), "fulf…");
        assert_eq!(cut("注文処理", 5), "注文…");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("nothing can be enqueued", 11), ["nothing can", "be enqueued"]);
        assert_eq!(wrap("no a-very-long-word b", 6), ["no", "a-very", "-long-", "word b"]);
        assert_eq!(wrap("注文処理", 5), ["注文", "処理"]);
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(clean("lif\u{202e}luf"), "lif\\u{202e}luf");
        assert_eq!(clean("a\u{200b}b\u{2028}c"), "a\\u{200b}b\\u{2028}c");
        assert_eq!(clean("👩\u{200d}💻 é"), "👩\u{200d}💻 é");
        assert_eq!(one_line("{\n  \"a\": 1\n}"), "{ \"a\": 1 }");
    }
}
