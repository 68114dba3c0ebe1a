/**
 * Who committed what, under which lease: seen by the database, whatever the engine says of itself.
 *
 * Each worker logs in as a role of its own. Triggers note, of every record of a step, the token that
 * it was written under and the one that was valid then, and of every end of a run, who owned it.
 *
 * Reads: `Harness`.
 * Feeds: the faults in which one worker loses its work to another.
 * Guarantees: a commit of one who was not the owner any more is found, also if its result was right.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Fleet from "../support/Fleet.ts"
import type * as Harness from "../support/Harness.ts"

const objects = [
  `create table commits (
    execution_id text, what text, token int, valid int, owner text, by text default session_user)`,
  `create function note_step() returns trigger language plpgsql as $$ begin
    insert into commits (execution_id, what, token, valid, owner)
    select new.execution_id, new.name, new.token, i.token, i.owner
    from romancy_instances i where i.execution_id = new.execution_id;
    return null;
  end $$`,
  `create trigger note_step after insert on romancy_steps
    for each row execute function note_step()`,
  `create function note_end() returns trigger language plpgsql as $$ begin
    insert into commits (execution_id, what, token, valid, owner)
    values (new.execution_id, new.status, old.token, new.token, old.owner);
    return null;
  end $$`,
  `create trigger note_end after update of status on romancy_instances for each row
    when (old.status = 'Running' and new.status not in ('Running', 'Runnable'))
    execute function note_end()`
]

export const make = Effect.fnUntraced(function* (harness: Harness.Harness) {
  const { sql } = harness
  yield* Effect.forEach(objects, (statement) => Effect.orDie(sql.unsafe(statement)))
  const members = new Map<string, string>()

  /** Starts a worker that logs in as a role of its own, and whose commits are judged. */
  const recruit = Effect.fnUntraced(function* (options: Fleet.Recruit & { readonly name: string }) {
    const role = options.name.replaceAll(" ", "_")
    const url = new URL(Redacted.value(options.url ?? harness.url))
    // One that was there before, in another database of the server, serves as well.
    yield* Effect.ignore(
      sql.unsafe(`create role ${role} superuser login password '${url.password}'`)
    )
    url.username = role
    const member = yield* harness.recruit({ ...options, url: Redacted.make(url.toString()) })
    members.set(member.workerId, role)
    return member
  })

  /** Commits under a token that was not valid any more, or by one who was not the owner. */
  const violations = sql<{
    what: string
    token: number
    valid: number
    owner: string
    by: string
  }>`select what, token, valid, owner, by from commits`.pipe(
    Effect.orDie,
    Effect.map((rows) =>
      rows.flatMap(({ by, owner, token, valid, what }) => {
        const rightful = members.get(owner)
        return token === valid && by === rightful
          ? []
          : [`${by} committed "${what}" under token ${token}: ${rightful} had it with ${valid}`]
      })
    )
  )

  /** How many commits were seen. */
  const count = sql<{ n: number }>`select count(*)::int4 as n from commits`.pipe(
    Effect.orDie,
    Effect.map(([row]) => row!.n)
  )

  return { recruit, violations, count }
})
