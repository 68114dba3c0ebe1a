/** A message that is published alone, beside one that is published with others. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Publication } from "../src/ChannelStore.ts"
import * as PgPublishStatements from "../src/PgPublishStatements.ts"
import { makeContext } from "../src/PgExecution.ts"
import type { StatementContext } from "../src/PgStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { self } from "./conformance/Harness.ts"
import { jobs, mail, message, news, publishAlone, subscribed } from "./conformance/Messages.ts"
import { engineWaits, hold, makeLive, overhear, stores } from "./conformance/Postgres.ts"

/** Everything that is announced up to now, as it is sent. */
const announced = Effect.map(overhear(["channel_message"]), (hear) =>
  Effect.map(hear, (all) => all.map(([, payload]) => payload))
)

/** Publishes by the statements themselves, and gives the answers with the texts that were sent. */
const world = Effect.gen(function* () {
  const { sql, store } = yield* stores
  const contextOf = yield* makeContext.pipe(
    Effect.provide(RomancyConfig.layer()),
    Effect.provideService(WorkerId, self)
  )
  const context = yield* contextOf(sql)
  const send = Effect.fnUntraced(function* (
    messages: ReadonlyArray<Publication>,
    options: Partial<StatementContext> = {}
  ) {
    const texts: Array<string> = []
    const query: StatementContext["query"] = (text, parameters) => {
      texts.push(text)
      return context.query(text, parameters)
    }
    const answers = yield* PgPublishStatements.publish(
      { ...context, query, ...options },
      messages.map((message) => ({ ...message, hands: false }))
    )
    return { answers: answers.map(({ published }) => published), texts }
  })
  const stored = sql`select channel, mode, target, body::text as body, metadata::text as metadata,
    origin, state, published_at between now() - interval '1 minute' and clock_timestamp() as recent,
    published_by::text::numeric > 0 as known from romancy_messages order by message_id`
  return { hear: yield* announced, send, sql, store, stored }
})

const live = makeLive({ lockTimeout: "10 seconds" })

/** Each with what is announced of it. */
const kinds: Record<string, readonly [Publication, string]> = {
  broadcast: [
    message(news, 1, { metadata: `{"a":"é"}` }),
    `{"channel_name":"news","message_id":n}`
  ],
  competing: [message(jobs, 1), `{"channel_name":"jobs","message_id":n}`],
  direct: [
    message(mail, 1, { target: "a" }),
    `{"channel_name":"mail","message_id":n,"target_instance_id":"a"}`
  ],
  "of an origin": [message(news, 1, { origin: "w/1" }), `{"channel_name":"news","message_id":n}`],
  "for a target whose name is too long to be sent": [
    message(mail, 1, { target: "x".repeat(8000) }),
    "{}"
  ]
}

const unnumbered = (payloads: ReadonlyArray<string>) =>
  payloads.map((payload) => payload.replace(/"message_id":\d+/, `"message_id":n`))

describe("a message that is published alone", () => {
  for (const [kind, [publication, payload]] of Object.entries(kinds)) {
    live(
      `is written and announced by a statement of its own as one of several is: ${kind}`,
      Effect.gen(function* () {
        const { hear, send, sql, stored } = yield* world
        const lone = yield* send([publication])
        assert.deepStrictEqual(lone.answers, ["Published"])
        assert.strictEqual(lone.texts.length, 1)
        assert.notInclude(lone.texts[0], "unnest")
        const written = yield* stored
        assert.strictEqual(written.length, 1)
        assert.deepStrictEqual(unnumbered(yield* hear), [payload])
        yield* sql`truncate romancy_messages`

        const several = yield* send([publication, message({ ...news, channel: "other" }, 2)])
        assert.deepStrictEqual(several.answers, ["Published", "Published"])
        assert.include(several.texts[0], "unnest")
        assert.deepStrictEqual(written, (yield* stored).slice(0, 1))
        assert.include(unnumbered(yield* hear), payload)
      })
    )
  }

  live(
    "of an origin is published once, and what is repeated is announced to nobody",
    Effect.gen(function* () {
      const { hear, send, stored } = yield* world
      const publication = message(news, 1, { origin: "w/1" })
      assert.deepStrictEqual((yield* send([publication])).answers, ["Published"])
      yield* hear
      for (const again of [publication, message(mail, 2, { origin: "w/1", target: "a" })]) {
        assert.deepStrictEqual((yield* send([again])).answers, ["Repeated"])
      }
      assert.strictEqual((yield* stored).length, 1)
      assert.deepStrictEqual(yield* hear, [])
      assert.deepStrictEqual(
        (yield* send([message(news, 2), message(news, 3)])).answers,
        ["Published", "Published"],
        "what has no origin repeats nothing"
      )
    })
  )

  for (const [end, answer] of [
    ["commit", "Repeated"],
    ["rollback", "Published"]
  ] as const) {
    live(
      `of an origin waits for another that is being published, and is told "${answer}" after a ${end}`,
      Effect.gen(function* () {
        const { send, sql, stored } = yield* world
        const publication = message(news, 1, { origin: "w/1" })
        const first = yield* hold(sql, send([publication]))
        const second = yield* Effect.forkScoped(publishAlone(publication), {
          startImmediately: true
        })
        yield* engineWaits(sql)
        yield* first[end]
        assert.strictEqual(yield* Fiber.join(second), answer)
        assert.strictEqual((yield* stored).length, 1)
      })
    )
  }

  live(
    "is in conflict with subscribers of the other mode, and a direct one with nobody",
    Effect.gen(function* () {
      const { hear, send, store, stored } = yield* world
      const other = (key: typeof news, mode: "broadcast" | "competing" | "direct") =>
        message({ ...key, mode }, 1)
      yield* subscribed(store, "a", news)
      yield* subscribed(store, "b", jobs)
      const forbidden = [other(news, "competing"), other(jobs, "broadcast")]
      for (const publication of forbidden) {
        assert.deepStrictEqual((yield* send([publication])).answers, ["Conflict"])
      }
      assert.deepStrictEqual((yield* send(forbidden)).answers, ["Conflict", "Conflict"])
      assert.deepStrictEqual(yield* stored, [])
      assert.deepStrictEqual(yield* hear, [])
      for (const key of [news, jobs]) {
        assert.deepStrictEqual((yield* send([message(key, 2)])).answers, ["Published"])
        const direct = { ...other(key, "direct"), target: "a" }
        assert.deepStrictEqual((yield* send([direct])).answers, ["Published"])
      }
    })
  )

  live(
    "is announced to nobody where nothing is to be announced",
    Effect.gen(function* () {
      const { hear, send, stored } = yield* world
      for (const publication of [message(news, 1), message(mail, 2, { target: "a" })]) {
        assert.deepStrictEqual((yield* send([publication], { hints: false })).answers, [
          "Published"
        ])
      }
      assert.strictEqual((yield* stored).length, 2)
      assert.deepStrictEqual(yield* hear, [])
    })
  )

  live(
    "commits without haste if it is announced",
    Effect.gen(function* () {
      const { send, sql } = yield* world
      const patience = (options: Partial<StatementContext>) =>
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`set local lock_timeout = '7s'`
            yield* send([message(news, 1)], options)
            const [row] = yield* sql<{ is: string }>`select current_setting('lock_timeout') as is`
            return row!.is
          })
        )
      assert.strictEqual(yield* patience({ commitTimeout: "9s" }), "9s")
      assert.strictEqual(yield* patience({ commitTimeout: "9s", hints: false }), "7s")
      assert.strictEqual(yield* patience({}), "7s")
    })
  )
})
