/**
 * What is counted for a monitoring system, through Effect's `Metric`: an exporter of the program has it.
 *
 * Reads: nothing.
 * Feeds: the metric registry of the program, by the modules where it happens.
 * Guarantees: attributes are names that the code gives (workflows, states, what woke a run), never the
 * id of an execution.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const counter = (name: string, description: string, attributes?: Metric.Metric.Attributes) =>
  Metric.counter(name, { description, incremental: true, attributes })

/** One metric for each set of attributes, made once: it is its identity that is dear to make. */
const series = <Labels extends ReadonlyArray<string>, M>(make: (...labels: Labels) => M) => {
  const made = new Map<string, M>()
  return (...labels: Labels): M => {
    const key = labels.join("\0")
    const known = made.get(key)
    if (known !== undefined) return known
    const metric = make(...labels)
    made.set(key, metric)
    return metric
  }
}

/**
 * Executions that ended here, or were set aside, by `workflow` and `status`.
 *
 * @since 0.1.0
 * @category metrics
 */
export const workflowsEnded = series(
  (workflow: string, status: "Completed" | "Failed" | "Interrupted" | "Blocked") =>
    counter("romancy_workflows_ended_total", "Executions that ended, or were set aside", {
      workflow,
      status
    })
)

/**
 * How long what was resumed had waited since the write that woke it, in milliseconds of the
 * database's clock, by what woke it: several are joined by `+`. Where `poll` and `sweep` find much
 * while the session listens, notifications are lost.
 *
 * @since 0.1.0
 * @category metrics
 */
export const resumptionWait = (sources: ReadonlyArray<string>) =>
  waitBySource(Array.from(sources).sort().join("+"))

const waitBySource = series((source: string) =>
  Metric.histogram("romancy_resumption_wait_millis", {
    description: "Time from the write that wakes an execution to its going on",
    boundaries: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000],
    attributes: { source }
  })
)

/**
 * Executions that this process freed because their worker had died, or had lost its lease.
 *
 * @since 0.1.0
 * @category metrics
 */
export const workflowsRecovered = counter(
  "romancy_workflows_recovered_total",
  "Executions freed from workers that died or lost their lease"
)

/**
 * How often this process lost the lease on all that it ran.
 *
 * @since 0.1.0
 * @category metrics
 */
export const leasesLost = counter(
  "romancy_leases_lost_total",
  "Times that a worker lost its lease, and left its executions to others"
)

/**
 * Listening sessions that were lost, and attempts to open one that failed.
 *
 * @since 0.1.0
 * @category metrics
 */
export const listenersLost = counter(
  "romancy_listeners_lost_total",
  "Listening sessions that were lost or could not be opened"
)

/**
 * Commits whose notifications were left out because the server's queue was full.
 *
 * @since 0.1.0
 * @category metrics
 */
export const notifySkipped = counter(
  "romancy_notify_skipped_total",
  "Batches committed without their notifications because the queue was full"
)

/**
 * Steps whose record an execution had when it ended, and that its body did not ask for: renamed, or
 * taken out, while the execution was on its way; or on a way that its last replay did not take.
 *
 * @since 0.1.0
 * @category metrics
 */
export const orphanedSteps = counter(
  "romancy_orphaned_steps_total",
  "Recorded steps that the body of an ended execution did not ask for"
)

/**
 * What became of the attempts of this relay to send events, by `outcome`.
 *
 * @since 0.1.0
 * @category metrics
 */
export const outboxSettled = series(
  (outcome: "Delivered" | "Retry" | "Refused" | "Expired" | "GivenBack") =>
    counter(
      "romancy_outbox_settled_total",
      "Events that a relay had in hand, by what became of them",
      {
        outcome
      }
    )
)
