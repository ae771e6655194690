//! What is wrong with a Service, in words its owner can act on.

use std::fmt;

/// A reason why a Service (or one field of it) is not served as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// A value does not parse. The Service keeps what it was served with before.
    Invalid {
        /// Where the value stands, as in `metadata.annotations[highwire.dev/node-selector]`.
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
}

impl Problem {
    /// The Event reason under which this problem is told, one of a fixed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { field, .. } if field.contains("annotations") => "InvalidAnnotation",
            Self::Invalid { .. } => "InvalidField",
            Self::Unsupported { .. } => "Unsupported",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Invalid {
            field,
            value,
            remedy,
        }
        | Self::Unsupported {
            field,
            value,
            remedy,
        }) = self;
        write!(f, "{field}: {value:?}: {remedy}")
    }
}
