/* SPDX-License-Identifier: Apache-2.0 */
/* The page is cli/diff_page.html, compiled in; it draws what lies in its JSON. There a
 * "<" is spelled as an escape, so that no name can end the script element. */
#include <string.h>

#include "cli/diff.h"

extern const char qf_diff_page[]; /* made by cmake/QfEmbed.cmake */

#define MARK "@DATA@"

void qf_diff_html(const struct qf_diff *diff, struct qf_buf *out)
{
    const char *mark = strstr(qf_diff_page, MARK);
    struct qf_buf json = {0};
    qf_diff_json(diff, &json);
    out->failed = out->failed || json.failed;
    qf_buf_append(out, qf_diff_page, (size_t)(mark - qf_diff_page));
    for (size_t i = 0; i < json.size; i++) {
        if (json.data[i] == '<')
            qf_buf_append_str(out, "\\u003c");
        else
            qf_buf_append(out, json.data + i, 1);
    }
    qf_buf_append_str(out, mark + strlen(MARK));
    qf_buf_fini(&json);
}
