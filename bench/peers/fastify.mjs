// What a user would pick instead: Fastify and postgres.js, on the same tables, with the same answers.
import formbody from '@fastify/formbody'
import { createVerifier } from 'fast-jwt'
import Fastify from 'fastify'
import postgres from 'postgres'

const { PORT, SOCKET, POOL, PUBLIC_URL, SECRET_KEY } = process.env

const sql = postgres({
  path: SOCKET,
  user: 'postgres',
  database: 'postgres',
  max: Number(POOL),
  connection: { TimeZone: 'UTC' },
  types: {
    // Ids are far below 2^53.
    bigint: { to: 20, from: [20], serialize: String, parse: Number },
    // A Date would cut microseconds off.
    time: { to: 1184, from: [1184], serialize: String, parse: iso },
  },
})

function iso(text) {
  const time = text.slice(0, -3).replace(' ', 'T')
  return (time.length > 19 ? time.padEnd(26, '0') : time) + 'Z'
}

const variant = {
  type: 'object',
  properties: {
    url: { type: 'string' },
    width: { type: 'integer' },
    height: { type: 'integer' },
    type: { type: 'string' },
  },
}
const image = {
  type: 'object',
  properties: {
    id: { type: 'integer' },
    url: { type: 'string' },
    width: { type: 'integer' },
    height: { type: 'integer' },
    alt: { type: 'string' },
    placeholder: { type: 'string', nullable: true },
    color: { type: 'string', nullable: true },
    variants: { type: 'array', items: variant },
  },
}
const feed = {
  type: 'object',
  properties: {
    id: { type: 'integer' },
    title: { type: 'string' },
    content: { type: 'string' },
    author_id: { type: 'integer' },
    author_email: { type: 'string' },
    author_nickname: { type: 'string' },
    image_urls: { type: 'array', items: { type: 'string' } },
    images: { type: 'array', items: image },
    like_count: { type: 'integer' },
    comment_count: { type: 'integer' },
    liked: { type: 'boolean', nullable: true },
    create_dt: { type: 'string' },
    update_dt: { type: 'string' },
  },
}

const FEEDS = `
  select f.id, f.title, f.content, f.author_id, u.email as author_email,
    u.nickname as author_nickname, coalesce(i.images, '[]') as images,
    f.like_count, f.comment_count, f.create_dt, f.update_dt
  from feeds f join users u on u.id = f.author_id, lateral (
    select json_agg(json_build_object('id', o.id, 'url', '${PUBLIC_URL}/' || o.key,
      'width', o.width, 'height', o.height, 'alt', o.alt, 'placeholder', o.placeholder,
      'color', o.color, 'variants', coalesce(v.variants, '[]')) order by o.position) as images
    from images o, lateral (
      select json_agg(json_build_object('url', '${PUBLIC_URL}/' || key, 'width', width,
        'height', height, 'type', content_type) order by width) as variants
      from images where original_id = o.id
    ) v
    where o.feed_id = f.id and o.original_id is null
  ) i
  where f.deleted_dt is null`
const READ = `${FEEDS} and f.id = $1`
const ORDER = 'order by f.create_dt desc, f.id desc limit $1'
const NEWEST = `${FEEDS} ${ORDER}`
const AFTER = `${FEEDS} and (f.create_dt, f.id)
  < (timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3::bigint) ${ORDER}`
const CREATE = `
  with written as (
    insert into feeds (title, content, author_id)
    select $1, $2, id from users where id = $3 and leaving_dt is null returning *
  )
  select f.id, f.title, f.content, f.author_id, u.email as author_email,
    u.nickname as author_nickname, '[]'::json as images,
    f.like_count, f.comment_count, f.create_dt, f.update_dt
  from written f join users u on u.id = f.author_id`

const prepared = (text, values) => sql.unsafe(text, values, { prepare: true })

function shown(row, liked) {
  row.image_urls = row.images.map((image) => image.url)
  row.liked = liked
  return row
}

const app = Fastify({ logger: false })
app.register(formbody)
const verify = createVerifier({ key: SECRET_KEY, algorithms: ['HS256'], cache: false })

app.get('/api/feed/read/:id', {
  schema: {
    params: { type: 'object', properties: { id: { type: 'integer' } } },
    response: { 200: feed },
  },
}, async (request, reply) => {
  const [row] = await prepared(READ, [request.params.id])
  return row ? shown(row, null) : reply.code(404).send({ detail: 'Feed not found.' })
})

app.get('/api/feed/list', {
  schema: {
    querystring: {
      type: 'object',
      properties: { limit: { type: 'integer', default: 20 }, cursor: { type: 'string' } },
    },
    response: { 200: { type: 'array', items: feed } },
  },
}, async (request) => {
  const { limit, cursor } = request.query
  const [, time, id] = cursor ? Buffer.from(cursor, 'base64url').toString().split(' ') : []
  const rows = await (cursor ? prepared(AFTER, [limit, time, id]) : prepared(NEWEST, [limit]))
  return rows.map((row) => shown(row, null))
})

app.post('/api/feed/create', {
  schema: {
    body: {
      type: 'object',
      required: ['title', 'content'],
      properties: { title: { type: 'string' }, content: { type: 'string' } },
    },
    response: { 200: feed },
  },
}, async (request, reply) => {
  let claims
  try {
    claims = verify((request.headers.authorization ?? '').slice(7))
  } catch {
    return reply.code(401).send({ detail: 'The access token is not valid.' })
  }
  const [row] = await prepared(CREATE, [request.body.title, request.body.content, claims.sub])
  return shown(row, false)
})

await app.listen({ port: Number(PORT), host: '127.0.0.1' })
