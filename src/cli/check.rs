//! `tidelock check`: which pods that asked for protection have it.

use serde::Serialize;
use tidelock_cluster::{
    api::{ApiError, CheckApi, connect_to},
    check::{Checked, State, check},
};

use super::{
    exit::{FAILED, Failure, UNPROTECTED, USAGE},
    output,
};

/// List the pods of a cluster that asked for protection, and whether they are protected
///
/// A pod is protected if its sidecar runs; how far behind its volumes are is told by `tidelock status`. Exit code 6 says that a pod is
/// not protected. Needs the right to list pods, and to get its namespace, or to list all of them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The namespace; without it, that of the kubeconfig's context
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// The kubeconfig's context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    protected: usize,
    starting: usize,
    unprotected: usize,
    pods: &'a [Checked],
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checked = runtime.block_on(async {
        let client = connect_to(args.context.clone()).await?;
        let own = args.namespace.as_deref().unwrap_or_else(|| client.default_namespace()).to_owned();
        let namespace = (!args.all_namespaces).then_some(own.as_str());
        check(&CheckApi::new(client), namespace).await
    });
    let checked = checked.map_err(|error| match error {
        error @ ApiError::NoCluster(_) => Failure::new(USAGE, error),
        error => Failure::new(FAILED, error),
    })?;
    let count = |state| checked.iter().filter(|one| one.state == state).count();
    let report = Report {
        protected: count(State::Protected),
        starting: count(State::Starting),
        unprotected: count(State::Unprotected),
        pods: &checked,
    };
    match args.json {
        true => output::json(&report)?,
        false => show(&report),
    }
    match report.unprotected {
        0 => Ok(()),
        many => Err(Failure::new(
            UNPROTECTED,
            anyhow::anyhow!("not protected: {many} of {} pods that asked", checked.len()),
        )),
    }
}

fn show(report: &Report<'_>) {
    if report.pods.is_empty() {
        return eprintln!(
            "No pod asked for protection: label it, or its namespace, with tidelock.dev/inject=true."
        );
    }
    let row = |one: &Checked| {
        let state = match one.state {
            State::Protected => "protected",
            State::Starting => "starting",
            State::Unprotected => "NOT PROTECTED",
        };
        [
            one.namespace.clone(),
            one.pod.clone(),
            one.owner.clone(),
            state.to_owned(),
            one.reason.unwrap_or_default().to_owned(),
            one.message.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = report.pods.iter().map(row).collect();
    output::table(["NAMESPACE", "POD", "OWNER", "STATE", "REASON", "WHAT TO DO"], &rows);
}
