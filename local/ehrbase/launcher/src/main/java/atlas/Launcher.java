package atlas;

import org.ehrbase.configuration.EhrBaseServerConfiguration;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.actuate.autoconfigure.security.servlet.ManagementWebSecurityAutoConfiguration;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.autoconfigure.r2dbc.R2dbcAutoConfiguration;
import org.springframework.boot.autoconfigure.security.servlet.SecurityAutoConfiguration;
import org.springframework.boot.web.context.WebServerPortFileWriter;
import org.springframework.context.annotation.Import;

/**
 * Runs the server's own modules; EHRbase configures security and its data source by itself. The
 * port it was given is written into the file that the property PORTFILE names.
 */
@SpringBootApplication(
        exclude = {
            ManagementWebSecurityAutoConfiguration.class,
            R2dbcAutoConfiguration.class,
            SecurityAutoConfiguration.class
        })
@Import(EhrBaseServerConfiguration.class)
public class Launcher {
    public static void main(String[] arguments) {
        SpringApplication application = new SpringApplication(Launcher.class);
        application.addListeners(new WebServerPortFileWriter());
        application.run(arguments);
    }
}
