//! The controller's status page, in a real browser and as text. What it shows of a Service of
//! another load balancer is tested in ownership.rs, on a cluster of its own.

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::bed::browser::{load, load_without_scripts};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, ingress_is, web, web_service};
use highwire_e2e::reported::ports_error;
use highwire_e2e::{Cluster, Program, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

/// What a browser takes for an element where it stands as it is.
const HOSTILE: &str = "<img src=x onerror=\"document.body.id='owned'\">";

/// Any controller: followers answer too.
async fn follower(cluster: &Cluster) -> Result<Program> {
    let leader = highwire::leader(cluster).await?;
    cluster.controller(if leader == "c1" { "c2" } else { "c1" })
}

/// The row of a Service or a node.
fn row<'a>(page: &'a str, service: &str) -> Result<&'a str> {
    let start = format!("<th scope=\"row\">{service}</th>");
    let mut rows = page.split("<tr").filter(|row| row.contains(&start));
    rows.next()
        .with_context(|| format!("{service} is not in {page}"))
}

/// A Service that is served, one that is refused its port, one that waits for a node, one with
/// a hostile value, and one of another class.
async fn services(scope: &Scope) -> Result<()> {
    let port = scope.free_port()?;
    ingress_is(&web_service(scope, "served", port).await?, &BOTH).await;
    ports_error(&web_service(scope, "late", port).await?, "True").await;
    let waits = scope.service("waits").load_balancer().select("app", "web");
    let waits = waits.annotation("highwire.dev/node-selector", "pool=nowhere");
    waits.tcp(scope.free_port()?, 8080).create().await?;
    let hostile = scope
        .service("hostile")
        .load_balancer()
        .select("app", "web");
    let hostile = hostile.annotation("highwire.dev/node-selector", HOSTILE);
    hostile.tcp(scope.free_port()?, 8080).create().await?;
    let taken = scope.service("taken").load_balancer().select("app", "web");
    let taken = taken
        .class("elsewhere.example/lb")
        .tcp(scope.free_port()?, 8080);
    taken.create().await?;
    Ok(())
}

/// The page of a controller in a browser, with its scripts and without.
fn both(controller: &Program, path: &str) -> Result<[String; 2]> {
    let (netns, admin) = (controller.netns(), controller.admin());
    Ok([
        load(netns, &format!("http://{admin}{path}"))?,
        load_without_scripts(netns, admin, path)?,
    ])
}

#[apply(cluster_test)]
async fn a_browser_shows_every_service_and_why() -> Result<()> {
    let (cluster, scope) = web("page").await?;
    services(&scope).await?;
    let controller = follower(&cluster).await?;
    let name = |service: &str| format!("{}/{service}", scope.namespace());
    let is_right = |page: &str| {
        let served = row(page, &name("served"))?;
        ensure!(served.contains(">served<"), "{served}");
        ensure!(served.contains("192.0.2.11, 192.0.2.12"), "{served}");
        let late = row(page, &name("late"))?;
        ensure!(late.contains(">conflict<"), "{late}");
        let holder = format!("held by Service {}", name("served"));
        ensure!(late.contains(&holder), "{late}");
        let waits = row(page, &name("waits"))?;
        ensure!(waits.contains(">pending<"), "{waits}");
        ensure!(waits.contains("matches none"), "{waits}");
        let hostile = row(page, &name("hostile"))?;
        ensure!(hostile.contains(">invalid<"), "{hostile}");
        ensure!(hostile.contains("&lt;img src=x"), "{hostile}");
        ensure!(!page.contains("<img"), "{page}");
        ensure!(!page.contains("<body id="), "its script ran: {page}");
        // A Service of another class is none of ours.
        ensure!(row(page, &name("taken")).is_err(), "{page}");
        let n1 = row(page, "n1")?;
        ensure!(n1.contains(">ready<"), "{n1}");
        let refused = format!("of {} is held by", name("late"));
        ensure!(n1.contains(&refused), "{n1}");
        Ok(())
    };
    wait_for("the page to show them", LONG, || async {
        let pages = both(&controller, "/")?;
        pages.iter().try_for_each(|page| is_right(page))
    })
    .await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_filter_hides_the_others() -> Result<()> {
    let (cluster, scope) = web("filter").await?;
    for name in ["one", "two"] {
        let service = web_service(&scope, name, scope.free_port()?).await?;
        ingress_is(&service, &BOTH).await;
    }
    let controller = follower(&cluster).await?;
    let name = |service: &str| format!("{}/{service}", scope.namespace());
    let (one, two) = (name("one"), name("two"));
    wait_for("the filtered page", LONG, || async {
        let [with, without] = both(&controller, &format!("/?q={one}"))?;
        // The server leaves the others out …
        row(&without, &one)?;
        ensure!(row(&without, &two).is_err(), "{without}");
        // … and the script, which has everything, hides them.
        ensure!(!row(&with, &one)?.starts_with(" hidden"), "{with}");
        ensure!(row(&with, &two)?.starts_with(" hidden"), "{with}");
        Ok(())
    })
    .await;
    let text = controller.get("/")?;
    ensure!(text.starts_with("leader: c"), "{text}");
    let line = format!("{one} ");
    ensure!(text.lines().any(|text| text.starts_with(&line)), "{text}");
    Ok(())
}
