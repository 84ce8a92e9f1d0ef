//! Lines of comma-separated values: quoting where a field needs it, and back.

/// The fields as one line, without its end.
pub fn join(fields: &[String]) -> String {
    let quoted = fields.iter().map(|field| {
        if field.contains([',', '"', '\n']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    });
    quoted.collect::<Vec<String>>().join(",")
}

/// The fields of a line; `None` where a quote is not closed.
pub fn split(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("one field from the start");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_split_again() {
        let fields = ["plain", "", "llvmpipe (LLVM 15, 256 bits)", "say \"yes\"", "a,\"b\","]
            .map(String::from);
        let line = join(&fields);
        assert_eq!(split(&line).expect("closed quotes"), fields);
        assert_eq!(join(&["a".into(), "b,c".into()]), "a,\"b,c\"");
    }

    #[test]
    fn an_open_quote_is_refused() {
        assert_eq!(split("a,\"b"), None);
    }
}
