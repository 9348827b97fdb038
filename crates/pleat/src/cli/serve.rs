//! `pleat node`: one node in the foreground.

use anyhow::Context;

use crate::directory::{Claim, NodeIdentity};
use crate::options::NodeArgs;

/// Claim the node's directory, and run the node until it is told to stop.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let options = args.into_options()?;
    crate::logging::start(&options.config.log)?;
    #[cfg(feature = "failpoints")]
    pleat_host::failpoint::from_environment().map_err(anyhow::Error::msg).context("FAILPOINTS")?;
    // Before anything else is touched: another process, or another node, may own what lies there.
    let claim = Claim::take(&options.data_dir)?;
    let incarnation = claim.as_node(&NodeIdentity { cluster_id: options.cluster_id.clone(), node: options.id })?;
    let shutdown = crate::shutdown::on_signals(options.supervised).context("listen for signals")?;
    let (name, listen) = (options.name.clone(), options.listen);
    tracing::info!(node = %name, %listen, data_dir = %options.data_dir.display(), "starting");
    crate::node::run(options, incarnation, shutdown).await.with_context(|| format!("{name} on {listen}"))?;
    tracing::info!(node = %name, "stopped");
    // Held until here, so that whoever starts next finds the files closed.
    drop(claim);
    Ok(())
}
