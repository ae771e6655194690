//! What endpoints cost in counts, which are the same on every machine.

use std::time::Duration;

use anyhow::Result;
use highwire_e2e::{Program, Scope};

use super::changes::{Done, calm};
use super::services;
use super::slices::Slices;
use crate::control_path::served;
use crate::output::counts::Counts;

/// Services that are there, of which one is changed.
const SERVICES: usize = 20;
/// The endpoints that each of them has at first.
const ENDPOINTS: usize = 2;
/// For changes to reach the agent, and it to follow them.
const QUIET: Duration = Duration::from_millis(500);

/// Counts on the first node.
pub(crate) async fn measure(scope: &Scope, agent: &Program, counts: &mut Counts) -> Result<()> {
    let mut note = |what: &str, count: f64| counts.add(format!("endpoints: {what}"), count);
    let agents = [agent.clone()];
    served(&agents, 0).await;
    let crowd = services(SERVICES);
    let slices = Slices::of(scope, crowd);
    let empty = calm(agent, QUIET).await?;
    crowd.create(scope, 0, &agents, SERVICES).await?;
    let before = calm(agent, QUIET).await?;
    let each = |done: Done| done.elements / SERVICES as f64;
    note(
        "elements of a Service without one",
        each(before.since(empty)),
    );
    slices.create(1).await?;
    let before = until_elements(agent, before, SERVICES).await?;
    note("connections to the API server", agent.connections()? as f64);

    // One that gets another, and another: only its own elements change.
    let mut before = before;
    for endpoints in [ENDPOINTS, ENDPOINTS + 1] {
        slices.set(0, endpoints).await?;
        let after = until_elements(agent, before, 1).await?;
        let what = format!("of one Service from {} to {endpoints}", endpoints - 1);
        let done = after.since(before);
        note(&format!("elements changed, {what}"), done.elements);
        note(&format!("transactions, {what}"), done.transactions);
        before = after;
    }
    slices.annotate(0, "nothing").await?;
    slices.set(0, ENDPOINTS + 1).await?;
    // News come in order: what comes after has been seen when this has.
    slices.set(1, 0).await?;
    let after = until_elements(agent, before, 1).await?;
    let done = after.since(before);
    note(
        "elements changed, the only one of a Service gone",
        done.elements,
    );
    note(
        "transactions, that and two writes that change none",
        done.transactions,
    );
    Ok(())
}

/// Waits until at least so many elements have been changed since, and no more are.
async fn until_elements(agent: &Program, before: Done, elements: usize) -> Result<Done> {
    highwire_e2e::wait_for("changed elements", Duration::from_secs(20), || async {
        let changed = Done::by(agent).map_err(|error| error.to_string())?;
        let changed = changed.since(before).elements;
        if changed >= elements as f64 {
            Ok(())
        } else {
            Err(format!("{changed} changed, not {elements}"))
        }
    })
    .await;
    calm(agent, QUIET).await
}
