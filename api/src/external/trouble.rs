//! Why a box does not serve a Service, or not as the Service asks.

/// The reason of a condition, one of a fixed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// There is none of the name asked for, or no default.
    NoExternalLoadBalancer,
    /// More than one is the default.
    SeveralDefaults,
    /// Another Service has a port.
    PortConflict,
    /// The range has no free port left.
    RangeExhausted,
    /// The box cannot do what the Service asks for.
    Unsupported,
    /// No node could answer.
    NoTargets,
    /// The box was not sent everything yet.
    Waiting,
    /// Its updater does not take what it is sent, or cannot be reached.
    UpdaterFailing,
    /// Its updater took it, but the port takes no connections.
    NotListening,
    /// The box's own agent cannot program it.
    EdgeFailing,
    /// The box's own agent does not renew its Lease.
    EdgeSilent,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NoExternalLoadBalancer,
        Self::SeveralDefaults,
        Self::PortConflict,
        Self::RangeExhausted,
        Self::Unsupported,
        Self::NoTargets,
        Self::Waiting,
        Self::UpdaterFailing,
        Self::NotListening,
        Self::EdgeFailing,
        Self::EdgeSilent,
    ];

    /// As conditions and Events have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoExternalLoadBalancer => "NoExternalLoadBalancer",
            Self::SeveralDefaults => "SeveralDefaults",
            Self::PortConflict => "PortConflict",
            Self::RangeExhausted => "RangeExhausted",
            Self::Unsupported => "Unsupported",
            Self::NoTargets => "NoTargets",
            Self::Waiting => "Waiting",
            Self::UpdaterFailing => "UpdaterFailing",
            Self::NotListening => "NotListening",
            Self::EdgeFailing => "EdgeFailing",
            Self::EdgeSilent => "EdgeSilent",
        }
    }

    /// Reads the reason of a condition.
    #[must_use]
    pub fn of(reason: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == reason)
    }
}
