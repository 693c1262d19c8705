"""The reference's SQL: one statement a request, which has all that a page shows.

Images come as JSON text from a lateral subquery, whose one index scan finds a feed's originals and
their variants side by side. The text is put together by hand: `json_agg` and `json_build_object`
write blanks, and rows through `row_to_json` took a fifth more of PostgreSQL's time.
"""

# Every part of the text but `alt` is of an alphabet that JSON need not escape.
_VARIANT = """concat('{"url":"', base, key, '","width":', width, ',"height":', height,
    ',"type":"', content_type, '"}')"""
_ORIGINAL = """concat('{"id":', id, ',"url":"', base, key, '","width":', width,
    ',"height":', height, ',"alt":', to_json(alt), ',"placeholder":',
    coalesce(to_json(placeholder)::text, 'null'), ',"color":',
    coalesce(to_json(color)::text, 'null'), ',"variants":[')"""
_IMAGES = f"""
    SELECT string_agg(url, ',') AS image_urls, string_agg(image, ',') AS images FROM (
        SELECT any_value(concat('"', base, key, '"')) FILTER (WHERE original_id IS NULL) AS url,
            any_value({_ORIGINAL}) FILTER (WHERE original_id IS NULL)
            || coalesce(string_agg({_VARIANT}, ',' ORDER BY width)
                FILTER (WHERE original_id IS NOT NULL), '') || ']}}' AS image
        FROM images WHERE feed_id = f.id GROUP BY position ORDER BY position
    ) AS each
"""  # noqa: S608
_FEEDS = f"""
    SELECT f.id, f.title, f.content, f.author_id, u.email AS author_email,
        u.nickname AS author_nickname, i.image_urls, i.images, f.like_count, f.comment_count,
        f.create_dt, f.update_dt
    FROM feeds AS f JOIN users AS u ON u.id = f.author_id, LATERAL ({_IMAGES}) AS i
    WHERE f.deleted_dt IS NULL
"""  # noqa: S608
_NEWEST_FIRST = "ORDER BY f.create_dt DESC, f.id DESC LIMIT $1"
_CREATED = """
    WITH written AS (
        INSERT INTO feeds (title, content, author_id)
        SELECT $1, $2, id FROM users WHERE id = $3 AND leaving_dt IS NULL
        RETURNING *
    )
    SELECT f.id, f.title, f.content, f.author_id, u.email AS author_email,
        u.nickname AS author_nickname, NULL::text AS image_urls, NULL::text AS images,
        f.like_count, f.comment_count, f.create_dt, f.update_dt
    FROM written AS f JOIN users AS u ON u.id = f.author_id
"""
_TIME = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""


def _json(rows: str, liked: str) -> str:
    """A statement's rows as JSON text, one each."""
    return f"""
        SELECT concat('{{"id":', id, ',"title":', to_json(title), ',"content":', to_json(content),
            ',"author_id":', author_id, ',"author_email":', to_json(author_email),
            ',"author_nickname":', to_json(author_nickname), ',"image_urls":[', image_urls,
            '],"images":[', images, '],"like_count":', like_count,
            ',"comment_count":', comment_count, ',"liked":{liked},"create_dt":"',
            to_char(create_dt AT TIME ZONE 'UTC', {_TIME}), '","update_dt":"',
            to_char(update_dt AT TIME ZONE 'UTC', {_TIME}), '"}}') AS feed
        FROM ({rows}) AS r
    """  # noqa: S608


def _bytes(statement: str, *, many: bool) -> str:
    feeds = "concat('[', string_agg(feed, ','), ']')" if many else "feed"
    return f"SELECT convert_to({feeds}, 'UTF8') FROM ({statement}) AS one"  # noqa: S608


def statements(base_url: str, *, in_json: bool) -> dict[str, str]:
    """All of them by name, for images under an address that is known to be harmless in SQL."""
    literal = f"'{base_url}/'"
    feeds = _FEEDS.replace("base,", f"{literal},")
    rows = {
        "read": f"{feeds} AND f.id = $1",
        "newest": f"{feeds} {_NEWEST_FIRST}",
        "after": f"{feeds} AND (f.create_dt, f.id) < ($2, $3) {_NEWEST_FIRST}",
    }
    if not in_json:
        return rows | {"create": _CREATED}
    # An INSERT has to be at the top.
    inserting, selecting = _CREATED.rsplit(")\n    SELECT", 1)
    created = _bytes(_json(f"SELECT {selecting}", "false"), many=False)
    texts = {
        name: _bytes(_json(statement, "null"), many=name != "read")
        for name, statement in rows.items()
    }
    return texts | {"create": f"{inserting}) {created}"}
