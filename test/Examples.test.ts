/**
 * The examples, as their reader runs them: each in a process of its own, by what it prints, and by
 * what it leaves behind.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Program from "./support/Program.ts"
import * as Database from "./support/TestDatabase.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, "examples")

/** The script of each example: what is in lower case, but for the runner. */
const scripts = new Map(
  readdirSync(folder)
    .filter((entry) => /^[a-z]/.test(entry) && entry !== "main.ts")
    .map((entry) => [
      entry.replace(/\.ts$/, ""),
      join(folder, entry.endsWith(".ts") ? entry : join(entry, "main.ts"))
    ])
)

/** What an example prints, without the times, which have to be there. */
const linesOf = ({ code, stderr, stdout }: Program.Ended): ReadonlyArray<string> => {
  assert.strictEqual(code, 0, `${stdout}\n${stderr}`)
  return stdout
    .trimEnd()
    .split("\n")
    .map((line) => {
      const [, text] = /^\d\d:\d\d:\d\d\.\d{3} {2}(\S.*)$/.exec(line) ?? []
      assert.isDefined(text, `a time and a text: ${line}`)
      return text!
    })
}

const matching = (lines: ReadonlyArray<string>, pattern: RegExp) =>
  lines.filter((line) => pattern.test(line))

const numbers = (first: number, last: number) =>
  Array.from({ length: last - first + 1 }, (_, n) => first + n)

type Lines = ReadonlyArray<string>

/** What each example has to print. What runs side by side has no order. */
const expectations: Record<string, (lines: Lines, stdout: string) => void> = {
  booking: (lines) => {
    assert.deepStrictEqual(lines.slice(0, 2).toSorted(), [
      "attic room: approval asked for",
      "garden room: approval asked for"
    ])
    assert.deepStrictEqual(lines.slice(2), [
      "garden room: confirmed",
      "garden room: approved by the front desk",
      "attic room: expired"
    ])
  },

  broadcast: (lines) => {
    const read = (who: string, ...news: ReadonlyArray<number>) =>
      assert.deepStrictEqual(matching(lines, new RegExp(`^${who} (reads|has read)`)), [
        ...news.map((n) => `${who} reads news ${n}`),
        `${who} has read: ${news.map((n) => `news ${n}`).join(", ")}`
      ])
    read("early bird", 1, 2, 3, 4)
    read("second bird", 1, 2, 3, 4)
    read("latecomer", 3, 4)
    assert.deepStrictEqual(matching(lines, /subscribed|published/), [
      "early bird has subscribed",
      "second bird has subscribed",
      "published news 1 to 2",
      "latecomer has subscribed",
      "published news 3 to 4"
    ])
  },

  crash: (lines) => {
    const killed = Number(/^worker ([12])/.exec(lines[0]!)?.[1])
    const other = 3 - killed
    assert.deepStrictEqual(lines, [
      `worker ${killed}: pack`,
      `worker ${killed}: label`,
      `worker ${killed}: hand over`,
      `worker ${killed} is killed in the middle of the third step`,
      `worker ${other}: hand over`,
      `handed over by worker ${other}`,
      `in the ledger: pack by worker ${killed}`,
      `in the ledger: label by worker ${killed}`,
      `in the ledger: hand over by worker ${killed}`,
      `in the ledger: hand over by worker ${other}`
    ])
  },

  events: (lines) => {
    const of = (item: string, cents: number) => {
      assert.deepStrictEqual(matching(lines, new RegExp(`^${item}:`)), [
        `${item}: waits for its payment`,
        `${item}: ${cents} cents from /till`,
        `${item}: shipped`
      ])
    }
    of("desk", 24900)
    of("lamp", 1999)
    assert.strictEqual(lines.length, 6)
  },

  "fan-out": (lines) => {
    assert.strictEqual(lines[0], "published 12 photos")
    const handled = lines.slice(1, -2)
    for (const line of handled) assert.match(line, /^resizer [123]: photo \d+$/)
    assert.deepStrictEqual(
      handled.map((line) => Number(line.split(" ").at(-1))).toSorted((a, b) => a - b),
      numbers(1, 12)
    )
    assert.deepStrictEqual(lines.slice(-2), [
      "3 resizers have handled 12 photos",
      "12 of them are different"
    ])
  },

  notify: (lines) => {
    const statuses = (worker: number) => matching(lines, new RegExp(`^worker ${worker}: `))
    assert.deepStrictEqual(
      statuses(1).slice(-4),
      ["Listening", "Lost", "Connecting", "Listening"].map((status) => `worker 1: ${status}`)
    )
    assert.deepStrictEqual(statuses(2).slice(-1), ["worker 2: Listening"])
    const rest = matching(lines, /^(?!worker)/)
    assert.deepStrictEqual(rest.slice(0, -1), [
      "20 tickets wait for an answer",
      "20 answers given, and not committed",
      "terminated the listening session of worker 1, committed the answers"
    ])
    const [all, ...parts] = Array.from(
      /^(\d+) tickets answered, (\d+) by worker 1 and (\d+) by worker 2$/.exec(rest.at(-1)!) ?? [],
      Number
    ).slice(1)
    assert.strictEqual(all, 20)
    assert.strictEqual(parts[0]! + parts[1]!, 20)
  },

  outbox: (lines) =>
    assert.deepStrictEqual(lines, [
      "received o-1-placed",
      "rolled back o-2",
      "the broker has stopped",
      "to be retried o-1-paid: the broker is away",
      "the broker is back",
      "received o-1-paid",
      "received o-1-packed",
      "received o-1-shipped"
    ]),

  retry: (lines) =>
    assert.deepStrictEqual(lines, [
      "charging 1200 cents, attempt 1",
      "charging 1200 cents, attempt 2",
      "charging 1200 cents, attempt 3",
      "1200 cents: charged at attempt 3",
      "charging 50000 cents, attempt 1",
      "50000 cents: declined, above the limit"
    ]),

  saga: (lines) =>
    assert.deepStrictEqual(lines, [
      "booked the flight",
      "booked the hotel",
      "no car is left",
      "cancelled the hotel, hotel-1",
      "cancelled the flight, flight-1",
      "the trip has failed: car sold out"
    ]),

  schedule: (lines, stdout) => {
    const reports = Array.from(stdout.matchAll(/^(\S+) {2}the report of (\S+)$/gm))
    const [first, , last] = reports.map(([, , due]) => due!)
    assert.strictEqual(reports.length, 3, "each once")
    assert.strictEqual(secondsFrom(first!, last!), 2)
    for (const [line, written, due] of reports) {
      assert.isAtLeast(secondsFrom(due!, written!), 0, `is not early: ${line}`)
    }
    assert.include(lines, "the schedule has begun, twice")
    assert.strictEqual(lines.at(-1), "the last report is written")
  },

  timer: (lines, stdout) => {
    const asked = /^set for (\d\d:\d\d:\d\d\.\d{3})$/.exec(lines[0]!)?.[1]
    assert.deepStrictEqual(lines.slice(1), [
      "the runtime has stopped; the reminder sleeps in the database",
      "the runtime starts again",
      "reminder",
      "second reminder, half a second later"
    ])
    const rang = /^(\S+) {2}reminder$/m.exec(stdout)?.[1]
    assert.isAtLeast(secondsFrom(asked!, rang!), 0, "it is not early")
  }
}

/** From one time of day to another, which is at most some hours later, on the next day perhaps. */
const secondsFrom = (earlier: string, later: string) => {
  const [from, to] = [earlier, later].map((time) => Date.parse(`1970-01-01T${time}Z`) / 1000)
  return ((to! - from! + 12 * 3600) % (24 * 3600)) - 12 * 3600
}

/** These have tests of their own. */
const elsewhere = ["orders"]

describe("The examples", () => {
  it("each have an expectation here", () => {
    assert.deepStrictEqual(
      [...scripts.keys()].toSorted(),
      [...Object.keys(expectations), ...elsewhere].toSorted()
    )
    for (const script of scripts.values()) assert.isTrue(existsSync(script), script)
  })

  for (const [name, expectation] of Object.entries(expectations)) {
    it.live(
      `show what ${name} is to show, and leave nothing running`,
      () =>
        Effect.gen(function* () {
          const { url } = yield* Database.make
          const temporary = yield* Program.temporaryFolder
          const ended = yield* Program.run(process.execPath, [scripts.get(name)!], {
            DATABASE_URL: Redacted.value(url),
            TMPDIR: temporary
          })
          expectation(linesOf(ended), ended.stdout)

          assert.deepStrictEqual(readdirSync(temporary), [])
          assert.deepStrictEqual(yield* Program.leftOf(Program.processesOf(temporary)), [])
          const sql = yield* Database.connect(url)
          const sessions = sql<{ application_name: string }>`
            select application_name from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()`
          assert.deepStrictEqual(yield* Program.leftOf(sessions), [])
        }),
      90_000
    )
  }

  for (const name of ["saga", "crash"]) {
    it.live(
      `bring a database of their own to ${name}, and remove it`,
      () =>
        Effect.gen(function* () {
          const temporary = yield* Program.temporaryFolder
          const ended = yield* Program.run("npm", ["run", "--silent", "example", name], {
            DATABASE_URL: undefined,
            TMPDIR: temporary
          })
          expectations[name]!(linesOf(ended), ended.stdout)
          // The copy of the server's programs stays, for the next time; the other is npm's own.
          const kept = /^(romancy-postgres-|node-compile-cache$)/
          assert.deepStrictEqual(
            readdirSync(temporary).filter((entry) => !kept.test(entry)),
            []
          )
          assert.deepStrictEqual(yield* Program.leftOf(Program.processesOf(temporary)), [])
        }),
      90_000
    )
  }

  it.live("are listed by name and first sentence, in the README as by npm run example", () =>
    Effect.gen(function* () {
      const { code, stdout } = yield* Program.run(process.execPath, [join(folder, "main.ts")])
      assert.strictEqual(code, 0)
      const listed = Array.from(stdout.matchAll(/^ {2}(\S+) +(\S.*)$/gm), ([, ...row]) => row)
      assert.deepStrictEqual(
        listed.map(([name]) => name).toSorted(),
        [...scripts.keys()].toSorted()
      )
      for (const [name, sentence] of listed) assert.match(sentence!, /^[A-Z].{20,100}\.$/, name)

      const readme = readFileSync(join(root, "README.md"), "utf8")
      const table = Array.from(
        readme.matchAll(/^\| \[([a-z-]+)\]\((examples\/\S+)\) \| (.*) \|$/gm),
        ([, ...row]) => row
      )
      assert.deepStrictEqual(
        table.map(([name, , sentence]) => [name, sentence]).toSorted(),
        listed.toSorted()
      )
      for (const [name, path] of table) {
        const script = scripts.get(name!)!
        assert.include([script, dirname(script)], join(root, path!), name)
      }
    })
  )

  it.live("are listed with exit code 2 for a name that there is not", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* Program.run(process.execPath, [
        join(folder, "main.ts"),
        "nothing"
      ])
      assert.strictEqual(code, 2)
      assert.strictEqual(stdout, "")
      assert.match(stderr, /^There is no example "nothing"\./)
      for (const name of scripts.keys()) assert.include(stderr, `  ${name} `)
    })
  )
})

describe("a script of package.json", () => {
  const options = {
    start: "PORT=8080",
    demo: "kills one of its workers",
    bench: "--quick",
    faults: "--seed"
  }
  const { scripts: commands } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))

  it.live.each(Object.entries(options))(
    "says with --help what %s does, and begins nothing",
    ([name, said]) =>
      Effect.gen(function* () {
        const script = join(root, commands[name].replace(/^node /, ""))
        const help = yield* Program.run(process.execPath, [script, "--help"])
        assert.strictEqual(help.code, 0, help.stderr)
        assert.include(help.stdout, said)
        const wrong = yield* Program.run(process.execPath, [script, "--nope"])
        assert.strictEqual(wrong.code, 2)
        assert.match(wrong.stderr, /^Unknown option '--nope'/)
        assert.include(wrong.stderr, said)
        assert.strictEqual(wrong.stdout, "")
      })
  )
})
