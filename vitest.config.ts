import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // One PostgreSQL for the whole run; each test makes a database of its own in it.
    globalSetup: ["test/support/PgServer.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 30_000,
    // Tests that drive time use TestClock; the timers of Node stay real.
    fakeTimers: { toFake: [] },
    // What a runtime logs is of interest where a test has failed.
    silent: "passed-only"
  }
})
