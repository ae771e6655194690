//! What is wrong with a Service, as its owner reads it.

use std::fmt;

use crate::{names::ADOPT_ANNOTATION, ownership::Manager};

/// A reason why a Service (or one field of it) is not served as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// A value does not parse. The Service keeps what it was served with before.
    Invalid {
        /// Its path, as in `metadata.annotations[highwire.dev/node-selector]`.
        field: String,
        /// The value as written.
        value: String,
        /// What is wrong with it and what to write instead.
        remedy: String,
    },
    /// The Service asks for something Highwire does not do. It is not served.
    Unsupported {
        /// The field that asks for it.
        field: String,
        /// Its value as written.
        value: String,
        /// Why not, and what to do.
        remedy: String,
    },
    /// Another program wrote its addresses, so it is left alone.
    ManagedElsewhere {
        /// Who wrote them.
        manager: Manager,
    },
    /// Another program has replaced or removed our addresses more than once. Highwire
    /// does not write them any more.
    Overwritten {
        /// Who wrote the addresses there now; `None` if there are none.
        manager: Option<Manager>,
    },
}

/// How many bytes of a value a text quotes: an annotation may have 256 KiB.
const LONGEST_VALUE: usize = 120;

impl Problem {
    /// The Event reason for this problem, one of a fixed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { field, .. } if field.contains("annotations") => "InvalidAnnotation",
            Self::Invalid { .. } => "InvalidField",
            Self::Unsupported { .. } => "Unsupported",
            Self::ManagedElsewhere { .. } | Self::Overwritten { .. } => "ManagedElsewhere",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid {
                field,
                value,
                remedy,
            }
            | Self::Unsupported {
                field,
                value,
                remedy,
            } => {
                let (field, remedy) = (shortened(field), shortened(remedy));
                write!(f, "{field}: {:?}: {remedy}", shortened(value))
            }
            Self::ManagedElsewhere { manager } => write!(
                f,
                "its addresses were written by {manager}, so Highwire leaves it alone; to hand \
                 it over, annotate it with {ADOPT_ANNOTATION}=true"
            ),
            Self::Overwritten { manager } => {
                match manager {
                    Some(manager) => write!(f, "{manager} replaced its addresses")?,
                    None => f.write_str("another program removed its addresses")?,
                }
                write!(
                    f,
                    " more than once, so Highwire does not write them any more; stop the other \
                     program, or give the Service a loadBalancerClass"
                )
            }
        }
    }
}

/// Cuts a text to [`LONGEST_VALUE`] bytes; `…` shows where.
fn shortened(text: &str) -> String {
    if text.len() <= LONGEST_VALUE {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(LONGEST_VALUE)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_makes_a_text_long() {
        let problem = Problem::Invalid {
            field: "f".repeat(9_000),
            value: "ä\n".repeat(100_000),
            remedy: "r".repeat(9_000),
        };
        assert!(problem.to_string().len() < 1_000, "{problem}");
        let short = Problem::Unsupported {
            field: "spec.clusterIP".into(),
            value: "None".into(),
            remedy: "remove the field".into(),
        };
        assert_eq!(
            short.to_string(),
            "spec.clusterIP: \"None\": remove the field"
        );
    }
}
