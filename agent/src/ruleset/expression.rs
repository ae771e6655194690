//! The few nft expressions our rules are made of, as `nftables` types.
//!
//! Above each stands the nft text it builds.

use std::borrow::Cow;

use highwire_api::Family;
use nftables::{
    expr::{
        BinaryOperation, CT, CTDir, Expression, Map, Meta, MetaKey, NamedExpression, Payload,
        PayloadField, SetItem, Socket, SocketAttr,
    },
    stmt::{JumpTarget, Mangle, Match, NAT, NATFamily, NATFlag, Operator, Statement},
};

use super::elements::Container;

type Expr = Expression<'static>;
type Stmt = Statement<'static>;

fn named(expression: NamedExpression<'static>) -> Expr {
    Expression::Named(expression)
}

/// A word: `established`, `@node4`.
fn word(text: impl Into<Cow<'static, str>>) -> Expr {
    Expression::String(text.into())
}

fn reference(container: Container) -> Expr {
    word(format!("@{}", container.name()))
}

fn payload(protocol: &'static str, field: &'static str) -> Expr {
    named(NamedExpression::Payload(Payload::PayloadField(
        PayloadField {
            protocol: protocol.into(),
            field: field.into(),
        },
    )))
}

/// `ip daddr` or `ip6 daddr`
pub(super) fn daddr(family: Family) -> Expr {
    match family {
        Family::V4 => payload("ip", "daddr"),
        Family::V6 => payload("ip6", "daddr"),
    }
}

/// `ip saddr` or `ip6 saddr`
fn saddr(family: Family) -> Expr {
    match family {
        Family::V4 => payload("ip", "saddr"),
        Family::V6 => payload("ip6", "saddr"),
    }
}

/// `meta nfproto ipv4` or `meta nfproto ipv6`
pub(super) fn is_family(family: Family) -> Stmt {
    let nfproto = named(NamedExpression::Meta(Meta {
        key: MetaKey::Nfproto,
    }));
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    matches(nfproto, Operator::EQ, word(name))
}

/// `meta l4proto . th dport . ip saddr` or `… . ip6 saddr`
pub(super) fn l4proto_dport_saddr(family: Family) -> Expr {
    named(NamedExpression::Concat(vec![
        l4proto(),
        payload("th", "dport"),
        saddr(family),
    ]))
}

/// `meta l4proto`
fn l4proto() -> Expr {
    named(NamedExpression::Meta(Meta {
        key: MetaKey::L4proto,
    }))
}

/// `tcp dport`, `udp dport`, `sctp dport` or `th dport`
pub(super) fn dport(header: &'static str) -> Expr {
    payload(header, "dport")
}

/// `udp checksum 0`
pub(super) fn has_no_udp_checksum() -> Stmt {
    matches(
        payload("udp", "checksum"),
        Operator::EQ,
        Expression::Number(0),
    )
}

/// `meta l4proto . th dport`
pub(super) fn l4proto_dport() -> Expr {
    named(NamedExpression::Concat(vec![
        l4proto(),
        payload("th", "dport"),
    ]))
}

/// `ct original ip daddr` or `ct original ip6 daddr`
pub(super) fn original_daddr(family: Family) -> Expr {
    let key = match family {
        Family::V4 => "ip daddr",
        Family::V6 => "ip6 daddr",
    };
    named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir: Some(CTDir::Original),
    }))
}

/// `ct original proto-dst`
pub(super) fn original_dport() -> Expr {
    let dir = Some(CTDir::Original);
    named(NamedExpression::CT(CT {
        key: "proto-dst".into(),
        family: None,
        dir,
    }))
}

/// `meta l4proto . ct original proto-dst`
pub(super) fn l4proto_original_dport() -> Expr {
    named(NamedExpression::Concat(vec![l4proto(), original_dport()]))
}

/// `<key> map @<container>`
pub(super) fn map(key: Expr, container: Container) -> Expr {
    named(NamedExpression::Map(Box::new(Map {
        key,
        data: reference(container),
    })))
}

fn matches(left: Expr, op: Operator, right: Expr) -> Stmt {
    Statement::Match(Match { left, op, right })
}

/// `<left> @<container>`
pub(super) fn is_in(left: Expr, container: Container) -> Stmt {
    matches(left, Operator::EQ, reference(container))
}

/// `<left> != @<container>`
pub(super) fn is_not_in(left: Expr, container: Container) -> Stmt {
    matches(left, Operator::NEQ, reference(container))
}

/// `ct state <states, joined by commas>`
pub(super) fn ct_state(states: &[&'static str]) -> Stmt {
    let state = CT {
        key: "state".into(),
        family: None,
        dir: None,
    };
    let right = match states {
        [one] => word(*one),
        several => Expression::List(several.iter().map(|state| word(*state)).collect()),
    };
    matches(named(NamedExpression::CT(state)), Operator::IN, right)
}

fn ct_status() -> Expr {
    named(NamedExpression::CT(CT {
        key: "status".into(),
        family: None,
        dir: None,
    }))
}

/// `ct status dnat`
pub(super) fn is_dnatted() -> Stmt {
    matches(ct_status(), Operator::IN, word("dnat"))
}

/// `ct status & dnat == 0`
pub(super) fn is_not_dnatted() -> Stmt {
    let masked = BinaryOperation::AND(ct_status(), word("dnat"));
    matches(
        Expression::BinaryOperation(Box::new(masked)),
        Operator::EQ,
        Expression::Number(0),
    )
}

fn one_of(items: impl IntoIterator<Item = Expr>) -> Expr {
    named(NamedExpression::Set(
        items.into_iter().map(SetItem::Element).collect(),
    ))
}

/// `meta l4proto { tcp, udp, sctp }`
pub(super) fn has_ports() -> Stmt {
    matches(
        l4proto(),
        Operator::EQ,
        one_of(["tcp", "udp", "sctp"].map(word)),
    )
}

/// `socket wildcard { 0, 1 }`
pub(super) fn has_listener() -> Stmt {
    let socket = named(NamedExpression::Socket(Socket {
        key: Cow::Owned(SocketAttr::Wildcard),
    }));
    matches(socket, Operator::EQ, one_of([0, 1].map(Expression::Number)))
}

/// `<key> set <value>`
pub(super) fn set(key: Expr, value: Expr) -> Stmt {
    Statement::Mangle(Mangle { key, value })
}

/// `accept`
pub(super) fn accept() -> Stmt {
    Statement::Accept(None)
}

/// `return`
pub(super) fn back() -> Stmt {
    Statement::Return(None)
}

/// `drop`
pub(super) fn drop() -> Stmt {
    Statement::Drop(None)
}

/// `jump <chain>`
pub(super) fn jump(chain: &'static str) -> Stmt {
    Statement::Jump(JumpTarget {
        target: chain.into(),
    })
}

/// `goto <chain>`
pub(super) fn goto(chain: &'static str) -> Stmt {
    Statement::Goto(JumpTarget {
        target: chain.into(),
    })
}

/// `counter name <counter>`
pub(super) fn count(counter: &'static str) -> Stmt {
    Statement::Counter(nftables::stmt::Counter::Named(counter.into()))
}

/// `dnat ip to <address>`, with a port `dnat ip to <address> : <port>`, or `dnat ip6 …`
pub(super) fn dnat(family: Family, address: Expr, port: Option<Expr>) -> Stmt {
    let family = match family {
        Family::V4 => NATFamily::IP,
        Family::V6 => NATFamily::IP6,
    };
    Statement::DNAT(Some(NAT {
        addr: Some(address),
        family: Some(family),
        port,
        flags: None,
    }))
}

/// `masquerade fully-random`
pub(super) fn masquerade() -> Stmt {
    Statement::Masquerade(Some(NAT {
        addr: None,
        family: None,
        port: None,
        flags: Some([NATFlag::FullyRandom].into()),
    }))
}
