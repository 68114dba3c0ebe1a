/**
 * The floor of the driver that the peers use: one row and one notification, and nothing else.
 *
 * Reads: `pg`.
 * Feeds: `child`.
 * Guarantees: the statements are those of the other floor, prepared, each a transaction of its own.
 */
import { Client } from "pg"
import type { Open } from "../System.ts"

const insertAndNotify = {
  name: "insert-and-notify",
  text: `with written as (insert into bench_floor (id, body) values ($1, $2::json) returning id)
    select pg_notify('bench_floor', id) from written`
}

export const open: Open = async ({ role, url }, ran) => {
  const client = new Client({ connectionString: url })
  await client.connect()
  if (role === "worker") {
    await client.query("create table bench_floor (id text primary key, body json not null)")
    client.on("notification", ({ payload }) => void ran(payload!))
    await client.query("listen bench_floor")
  }
  const send = async (id: string) => {
    await client.query({ ...insertAndNotify, values: [id, '{"_tag":"Success","value":null}'] })
  }
  return { send, start: send }
}
