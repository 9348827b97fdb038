//! `pleat node`: one node in the foreground.

use anyhow::Context;

use super::output;
use crate::directory::{Claim, NodeIdentity};
use crate::node::DiskFailure;
use crate::options::NodeArgs;
use crate::sigbus;

/// Claim the node's directory, and run the node until it is told to stop.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let options = args.into_options()?;
    crate::logging::start(&options.config.log)?;
    sigbus::install()?;
    #[cfg(feature = "failpoints")]
    pleat_host::failpoint::from_environment().map_err(anyhow::Error::msg).context("FAILPOINTS")?;
    // Before anything else is touched: another process, or another node, may own what lies there.
    let claim = Claim::take(&options.data_dir)?;
    let incarnation = claim.as_node(&NodeIdentity { cluster_id: options.cluster_id.clone(), node: options.id })?;
    let shutdown = crate::shutdown::on_signals(options.supervised).context("listen for signals")?;
    let (name, listen) = (options.name.clone(), options.listen);
    tracing::info!(node = %name, %listen, data_dir = %options.data_dir.display(), "starting");
    let ended = crate::node::run(options, incarnation, shutdown).await.with_context(|| format!("{name} on {listen}"));
    if let Err(error) = &ended
        && error.downcast_ref::<DiskFailure>().is_some()
    {
        output::complain(&format!("error: {error:#}"));
        // Nothing that is still open may be closed in order any more.
        std::process::exit(i32::from(sigbus::EXIT_CODE));
    }
    ended?;
    tracing::info!(node = %name, "stopped");
    // Held until here, so that whoever starts next finds the files closed.
    drop(claim);
    Ok(())
}
