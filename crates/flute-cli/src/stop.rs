//! Phrases at which a text ends. They arrive in pieces, so what may still become one is held back.

/// Watches a stream for the first of some phrases.
pub(crate) struct StopText {
    phrases: Vec<String>,
    held: String,
}

impl StopText {
    /// Watches for `phrases`; empty ones would end every text at once and are ignored.
    pub(crate) fn new(phrases: &[String]) -> Self {
        let phrases = phrases.iter().filter(|phrase| !phrase.is_empty()).cloned().collect();
        Self { phrases, held: String::new() }
    }

    /// What may be shown now that `piece` has arrived, and whether the text ends there.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(end) = self.phrases.iter().filter_map(|phrase| self.held.find(phrase)).min() {
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), true);
        }
        let begun = self.phrases.iter().map(|phrase| self.begun(phrase)).max().unwrap_or(0);
        (self.held.drain(..self.held.len() - begun).collect(), false)
    }

    /// What was held back for a phrase that never came.
    pub(crate) fn finish(self) -> String {
        self.held
    }

    /// Bytes at the end of the text that begin `phrase`.
    fn begun(&self, phrase: &str) -> usize {
        let ends = phrase.char_indices().map(|(at, _)| at);
        ends.rev().find(|at| self.held.ends_with(&phrase[..*at])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::StopText;

    fn run(phrases: &[&str], pieces: &[&str]) -> (String, bool) {
        let phrases: Vec<String> = phrases.iter().map(ToString::to_string).collect();
        let mut stop = StopText::new(&phrases);
        let mut shown = String::new();
        for piece in pieces {
            let (text, ended) = stop.push(piece);
            shown += &text;
            if ended {
                return (shown, true);
            }
        }
        (shown + &stop.finish(), false)
    }

    #[test]
    fn a_phrase_ends_the_text_before_itself_however_it_is_cut() {
        let text = "one två END three";
        for (at, _) in text.char_indices() {
            let (head, tail) = text.split_at(at);
            assert_eq!(run(&["END"], &[head, tail]), ("one två ".into(), true), "cut at {at}");
        }
    }

    #[test]
    fn a_phrase_that_only_begins_is_shown_in_the_end() {
        assert_eq!(run(&["END", "åå"], &["a E", "N", " bå"]), ("a EN bå".into(), false));
    }

    #[test]
    fn the_earliest_of_several_phrases_counts() {
        assert_eq!(run(&["c", "b"], &["abc"]), ("a".into(), true));
    }

    #[test]
    fn without_phrases_everything_is_shown_at_once() {
        let mut stop = StopText::new(&[String::new()]);
        assert_eq!(stop.push("text"), ("text".into(), false));
    }
}
