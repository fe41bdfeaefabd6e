# An MCP server of a few lines, for sh: $1 says of which generation it is, $2 how it ends. Each tool is a way to behave.

case $2 in
    deaf) trap '' TERM ;;
    patient) trap 'exit 0' TERM ;;
esac
say() { printf '{"jsonrpc":"2.0","id":%s,%s}\n' "$id" "$1"; }
text() { say "\"result\":{\"resultType\":\"complete\",\"content\":[{\"type\":\"text\",\"text\":\"$1\"}]}"; }
x() { head -c "$1" /dev/zero | tr '\0' x; }

while IFS= read -r line; do
    id=${line#*'"id":'}
    id=${id%%[,\}]*}
    case $line in
        *'"server/discover"'*)
            case $1 in
                new) say '"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"}' ;;
                old) say '"error":{"code":-32601,"message":"no such method"}' ;;
                nameless) id=null; say '"error":{"code":-32600,"message":"not initialized"}' ;;
                strict) exit 4 ;;
            esac ;;
        *'"initialize"'*) say '"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sh","version":"1"}}' ;;
        *'"tools/list"'*) say '"result":{"resultType":"complete","tools":[{"name":"hello","inputSchema":{"type":"object"}}],"ttlMs":0,"cacheScope":"private"}' ;;
        *'"ping"'*) say '"result":{}' ;;
        *'"notifications/'*) ;;
        *'"tools/call"'*)
            name=${line##*'"name":"'}
            case ${name%%\"*} in
                hello) say '"result":{"resultType":"complete","content":[],"structuredContent":{"hello":"there"}}' ;;
                pid) text $$ ;;
                names) text "$(env | sed 's/=.*//' | tr '\n' ' ')" ;;
                token) text "$TOKEN" ;;
                where) text "$(pwd)" ;;
                leave) sleep 1000 >/dev/null 2>&1 & text $! ;;
                die) echo "for a reason" >&2; exit 3 ;;
                silent) ;;
                noise) for i in 1 2 3 4 5; do echo "debug: $i"; done; text noisy ;;
                garbage) for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do echo "not { json"; done ;;
                wrong) say '"result":7' ;;
                quoted) id="\"$id\""; text quoted ;;
                large) printf '{"jsonrpc":"2.0","result":{"content":[{"type":"text","text":"'; x 11534336; printf '"}]},"id":%s}\n' "$id" ;;
                wordy) x 3000000 >&2; for i in 1 2 3 4 5 6 7 8 9; do echo "$i" >&2; done; text said ;;
                stuck) sleep 1000 ;;
            esac ;;
    esac
done
case $2 in
    deaf | patient) while :; do sleep 0.05; done ;;
esac
